# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What privacy costs, and what it buys
#
# One number, ε, is chosen before a study begins. It sets two things at once: how much noise the
# model is trained with, and how well anybody could ever tell from it whether a given patient took
# part. This notebook shows both sides for ε = 8, 3 and 1 and for no noise at all, on four synthetic
# hospitals:
#
# 1. the plan: the noise for each ε, before anything is trained;
# 2. the price: Dice against ε, with intervals;
# 3. what is bought: the best attack that is left, for every ε;
# 4. a way to pay less: hospitals that hide their updates in a sum.
#
# It takes some minutes on two CPU cores.

# %%
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import medfl

SIZES = {
    "default": {
        "patients": (36, 28, 20, 12),
        "shape": (64, 64, 48),
        "spacing": (2.8, 2.8, 3.4),
        "crop": (32, 32, 24),
        "rounds": 12,
        "jobs": 2,
    },
    "small": {  # for the tests: everything runs, nothing is learnt
        "patients": (4, 4, 4, 4),
        "shape": (32, 32, 24),
        "spacing": (5.6, 5.6, 6.8),
        "crop": (16, 16, 16),
        "rounds": 1,
        "jobs": 1,
    },
}
# Set MEDFL_NOTEBOOK_SIZE=small before starting for the second one.
size = SIZES[os.environ.get("MEDFL_NOTEBOOK_SIZE", "default")]

# Everything goes to a temporary folder. To keep it, name a folder of your own instead.
folder = tempfile.TemporaryDirectory(prefix="medfl-notebook-")
os.chdir(folder.name)

plt.rcParams.update(
    {"figure.dpi": 80, "font.size": 9, "axes.titlesize": 9, "axes.spines.top": False}
    | {"axes.spines.right": False, "legend.frameon": False}
)
EPSILONS = (8, 3, 1)
TINTS = {8: "#56b4e9", 3: "#0072b2", 1: "#003d66"}
REGIONS = {"WT": "whole tumour", "TC": "tumour core"}
START, NO_NOISE = "#7f7f7f", "#d55e00"

# %% [markdown]
# ## 1 · The plan
#
# Four hospitals of unequal size, a quarter of whose patients are held out for scoring. The study
# starts from a model that was trained on synthetic patients who belong to no hospital, and trains
# the few hundred numbers that a new scanner asks for.

# %%
files = medfl.write_hospitals(
    Path("hospitals"), patients=size["patients"], shape=size["shape"], spacing=size["spacing"]
)
sites = [medfl.load_site(file) for file in files]


def study_of(epsilon, trust="local", baselines=()):
    """The same study under another ε, and in another mode of trust."""
    text = f"""\
id = "utility"
seed = 1

[input]
modalities = ["t1n", "t1c", "t2w", "t2f"]
regions = ["TC", "WT", "ET"]
crop_size = {list(size["crop"])}
crops_per_patient = 2

[network]
name = "SegResNet"
arguments = {{ init_filters = 8, blocks_down = [1, 1, 1], blocks_up = [1, 1] }}

[privacy]
epsilon = {epsilon}
sampling_prob = 0.5
clip_norm = 1.0
clipping = "normalised"
trust = "{trust}"
colluding_sites = {1 if trust == "secure" else 0}

[training]
rounds = {size["rounds"]}
local_steps = 1
optimizer = "sgd"
learning_rate = 1.0
trainable = ["norms", "conv_final.*"]

[aggregation]
strategy = "fedavgm"
server_learning_rate = 0.2
momentum = 0.5
ema_decay = 0.8
min_sites = 4

[evaluation]
every = {size["rounds"]}
overlap = 0.25
baselines = {list(baselines)}
pictures = 0

[synthetic]                       # how the starting model was made
shape = [64, 64, 48]
spacing = [2.8, 2.8, 3.4]
skull_stripped = true
seed = 1000
pretraining_patients = 120
pretraining_steps = 900
ema_decay = 0.99

[synthetic.start]
shipped = "demo"
sha256 = "7c0f2945501528a563d67ddc1485bf368a2723210658f936d68321c624d8c9e3"

[tuning]                          # the settings were chosen on synthetic patients alone
on = "public"
"""
    path = Path(f"{trust}-{epsilon}.toml").resolve()
    path.write_text(text.replace("'", '"'), encoding="utf-8")
    return medfl.load_study(path)


studies = {
    (trust, epsilon): study_of(epsilon, trust)
    for trust in ("local", "secure")
    for epsilon in EPSILONS
}

# %% [markdown]
# `medfl plan` derives the noise of every hospital from ε and reads no image for it. This is the
# table that everybody sees before agreeing to the study, here for ε = 3:

# %%
done = subprocess.run(
    [
        sys.executable,
        "-m",
        "medfl",
        "plan",
        "local-3.toml",
        *map(str, files),
        "--picture",
        "plan.png",
    ],
    env={name: value for name, value in os.environ.items() if "COLOR" not in name}
    | {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "96"},
    check=True,
    capture_output=True,
    text=True,
)
print(done.stdout)

# %% [markdown]
# And this is its picture. Above: how the loss of each hospital grows from round to round, below its
# own budget. Below: what is left of the promise if other hospitals side with the server. With
# `local` trust nothing changes, since every hospital's own noise protects its patients; with
# `secure` trust a hospital adds a part of the noise only, and relies on the others for the rest.

# %%
drawn = plt.imread("plan.png")
picture = plt.figure(figsize=(9.6, 9.6 * drawn.shape[0] / drawn.shape[1]))
panel = picture.add_axes((0, 0, 1, 1))
panel.imshow(drawn)
panel.set_axis_off()
plt.show()

# %% [markdown]
# Noise for each ε, on the average of all hospitals, as a share of the most that one patient weighs:

# %%
plans = {cell: medfl.plan_study(study, sites) for cell, study in studies.items()}
print(f"{'ε':>3} {'trust':8} {'σ (largest)':>12} {'noise in the average':>22}")
for (trust, epsilon), plan in plans.items():
    sigma = max(at.mechanism.noise_multiplier for at in plan.sites)
    noise = plan.federation.noise_per_coordinate
    print(f"{epsilon:3} {trust:8} {sigma:12.2f} {noise:22.3f}")

fine = (0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 8)
mechanism, delta = plans["local", 3].sites[0].mechanism, plans["local", 3].sites[0].delta
sigmas = [
    medfl.noise_multiplier_for(
        epsilon=epsilon,
        delta=delta,
        sampling_prob=mechanism.sampling_prob,
        steps=plans["local", 3].sites[0].total_steps,
    )
    for epsilon in fine
]
ratio = plans["local", 3].federation.noise_per_coordinate / mechanism.noise_multiplier
picture, panel = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
panel.plot(fine, [sigma * ratio for sigma in sigmas], color="#0072b2", label="local")
for trust, marker in (("local", "o"), ("secure", "s")):
    noise = [plans[trust, epsilon].federation.noise_per_coordinate for epsilon in EPSILONS]
    colour = "#0072b2" if trust == "local" else "#009e73"
    label = None if trust == "local" else "secure, three of four hospitals honest"
    panel.plot(EPSILONS, noise, marker, color=colour, label=label)
panel.set(
    xscale="log",
    xlabel="ε",
    ylabel="noise in the average / C",
    title="the noise that each ε asks for",
)
panel.set_xticks((0.5, 1, 3, 8), ("0.5", "1", "3", "8"))
panel.minorticks_off()
panel.set_ylim(bottom=0)
panel.legend()
plt.show()

# %% [markdown]
# Halving ε nearly doubles the noise, and where ε is small there is much of it already.
#
# ## 2 · The price: Dice against ε
#
# Seven runs: no noise once, and every ε in both modes of trust. All start from the same model and
# are scored on the same held-out patients.

# %%
results = {}
for (trust, epsilon), study in studies.items():
    first = not results
    if first:  # once, beside the first run: the same schedule without noise
        study = study_of(epsilon, trust, baselines=("initial-only", "non-private"))
    out = Path("runs") / f"{trust}-{epsilon}"
    medfl.run_study(study, sites, out=out, jobs=size["jobs"])
    results[trust, epsilon] = medfl.read_run(out)
    spent = np.ceil(100 * results[trust, epsilon].largest_loss.epsilon_pld) / 100
    print(f"ε = {epsilon}, {trust}: done; spent {spent:.2f}")

# %%
beside = results["local", 8]  # start, and the run without noise


def dice_of(run, variant, region):
    """Dice of every held-out patient."""
    rows = run.scores_of(variant)
    return {(row.site, row.patient): row.dice for row in rows if row.region == region}


def over_start(run, variant, region, draws=2000):
    """Mean of a model less the start, over patients, and a bootstrap interval over patients."""
    reference = dice_of(beside, "initial-only", region)
    found = dice_of(run, variant, region)
    change = np.array([found[patient] - reference[patient] for patient in sorted(found)])
    drawn = np.random.default_rng(0).choice(change, (draws, len(change))).mean(axis=1)
    return change.mean(), *np.quantile(drawn, (0.025, 0.975))


def mark(panel, place, found, **style):
    """A mean with its interval."""
    mean, low, high = found
    panel.errorbar(place, mean, yerr=[[mean - low], [high - mean]], capsize=3, **style)


picture, panels = plt.subplots(1, 2, figsize=(9.6, 3.5), layout="constrained")
for panel, (region, title) in zip(panels, REGIONS.items(), strict=True):
    start = np.mean(list(dice_of(beside, "initial-only", region).values()))
    panel.axhline(0, color=START, linestyle="dashed", label="start: nothing trained")
    mark(
        panel,
        0,
        over_start(beside, "non-private", region),
        fmt="^",
        color=NO_NOISE,
        label="no noise, no promise",
    )
    for trust, shift, colour, marker in (
        ("local", -0.09, "#0072b2", "o"),
        ("secure", 0.09, "#009e73", "s"),
    ):
        for place, epsilon in enumerate(EPSILONS, start=1):
            found = over_start(results[trust, epsilon], "federated", region)
            label = f"private, {trust}" if place == 1 else None
            mark(panel, place + shift, found, fmt=marker, color=colour, label=label)
    panel.set_xticks(range(1 + len(EPSILONS)), ["∞", *map(str, EPSILONS)])
    panel.set(title=f"{title} (start: Dice {start:.2f})", xlabel="ε", ylabel="Dice less start's")
marks, labels = panels[0].get_legend_handles_labels()
picture.legend(marks, labels, loc="outside lower center", ncols=4, fontsize=8)
plt.show()

# %% [markdown]
# Zero is the start, and the bars are 95 % intervals over patients, each of whom is compared with
# themselves. (Intervals of the Dice itself would be many times longer: most of them is how
# different patients are from each other, which is the same in every run.) The same as numbers:

# %%
print("Dice less the start's, mean over held-out patients (95 % interval)")
print(f"{'ε':>3} {'trust':8} " + " ".join(f"{title:>26}" for title in REGIONS.values()))
rows = [("∞", "", beside, "non-private")]
rows += [(str(epsilon), trust, run, "federated") for (trust, epsilon), run in results.items()]
for epsilon, trust, run, variant in rows:
    cells = []
    for region in REGIONS:
        mean, low, high = over_start(run, variant, region)
        cells.append(f"{mean:+.3f} ({low:+.3f} to {high:+.3f})")
    print(f"{epsilon:>3} {trust:8} " + " ".join(f"{cell:>26}" for cell in cells))

# %% [markdown]
# **What so small a run shows, and what not.** An interval that holds 0 means that training under
# this ε has not been shown to help or to harm. No interval covers the noise itself: it is drawn
# afresh in every run, and another run moves each line of the table, those of small ε most.
# Differences between `local` and `secure` at the same ε are mostly that. Several seeds would be
# needed to say more; the end of this notebook names the command.
#
# And the means of all patients may hide a hospital for which it is different. The worst hospital is
# the one to look at:

# %%
print("whole tumour, federated less start, by hospital")
print(f"{'ε':>3} {'trust':8} " + " ".join(f"{site.name:>8}" for site in sites))
reference = dice_of(beside, "initial-only", "WT")
for (trust, epsilon), run in results.items():
    found, cells = dice_of(run, "federated", "WT"), []
    for site in sites:
        changes = [found[key] - reference[key] for key in found if key[0] == site.name]
        cells.append(f"{np.mean(changes):+8.3f}")
    print(f"{epsilon:3} {trust:8} " + " ".join(cells))

# %% [markdown]
# ## 3 · What it buys: the best attack that is left
#
# Imagine the strongest attacker there can be: somebody who knows every other patient, all code and
# everything that was ever released, and who wants to know whether one given patient took part.
# There are two ways to be wrong: to accuse somebody who did not take part, and to miss somebody who
# did. The curves below are the *best trade-off between the two that any attack can have*, computed
# by the accountant from the very steps of these runs. No attack, known or unknown, lies above its
# curve.
#
# A promise at one δ allows a line, and every δ allows another one; the curve is what all of them
# leave together (Dong, Roth and Su, "Gaussian differential privacy", 2019, section 2.2).

# %%
DELTAS = np.concatenate([np.logspace(-9, -2, 22), np.linspace(0.02, 0.9, 45)])


def best_attack(epsilon, false_alarms):
    """The largest share of members found at each share of false alarms."""
    loss = results["local", epsilon].largest_loss
    at = next(at for at in plans["local", epsilon].sites if at.site == loss.site)
    charge = medfl.Charge(mechanism=at.mechanism, steps=loss.steps)
    missed = np.zeros_like(false_alarms)
    for delta in DELTAS:
        at_delta = medfl.epsilon([charge], delta=float(delta))
        steep = 1 - delta - np.exp(at_delta) * false_alarms
        flat = np.exp(-at_delta) * (1 - delta - false_alarms)
        missed = np.maximum(missed, np.maximum(steep, flat))
    return 1 - missed


false_alarms = np.concatenate([[0.0], np.logspace(-4, 0, 200)])
curves = {epsilon: best_attack(epsilon, false_alarms) for epsilon in EPSILONS}

picture, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.0), layout="constrained")
for panel in (left, right):
    panel.fill_between(false_alarms, false_alarms, color="#dddddd", linewidth=0)
    panel.plot(false_alarms, false_alarms, color=START, linestyle="dotted", label="a coin")
    for epsilon, found in curves.items():
        panel.plot(false_alarms, found, color=TINTS[epsilon], linewidth=2, label=f"ε = {epsilon}")
    panel.plot([0, 0, 1], [0, 1, 1], color=NO_NOISE, linestyle="dashed", label="no noise")
    panel.set(xlabel="share accused wrongly", ylabel="share of members found, at most")
left.set_title("the best attack against one patient")
right.set(xscale="log", xlim=(1e-4, 1), title="the same, few false alarms")
right.axvline(0.01, color="#b22222", linewidth=0.8)
right.text(0.0085, 0.9, "1 in 100", ha="right", color="#b22222", fontsize=8)
left.legend(loc="lower right")
plt.show()

print(f"{'ε':>3} {'right from even odds':>22} {'found at 1 % false alarms':>27}")
for epsilon in EPSILONS:
    loss = results["local", epsilon].largest_loss
    right_guesses = np.ceil(50 * (1 + loss.membership_advantage))
    members = np.ceil(100 * loss.tpr_at_1_percent_fpr)
    print(f"{epsilon:3} {right_guesses:20.0f} % {members:25.0f} %")

# %% [markdown]
# Read the right panel from the red line upwards. Without any release one in a hundred members would
# be found at that rate of false alarms, by luck; the curves say how much more a release could ever
# give away. ε = 1 is close to that, ε = 8 is not: it is a promise with limits, and real attacks
# stay far below it (`04_audit_and_inversion`). The table is what every run folder and report
# states.
#
# ## 4 · A way to pay less: a secure sum
#
# With `trust = "secure"` the hospitals' updates are added up under masks that cancel, so that the
# server learns the sum and nothing else. The sum needs the noise once and not once a hospital.
# Every hospital adds a share that is large enough even if one of the others sides with the server,
# and the others' shares are what it relies on:

# %%
modes = plans["local", 3].trust_modes
print(modes.advice)
print()
print("ε of a study that aims at 3, if other hospitals side with the server and strip their noise")
print(f"{'trust':8} " + " ".join(f"{f'{count} of them':>12}" for count in modes.counts))
for mode in plans["secure", 3].trust_modes.modes:
    cells = [f"{np.ceil(100 * value) / 100:12.2f}" for value in mode.epsilons.values()]
    print(f"{mode.trust:8} " + " ".join(cells))

# %% [markdown]
# Less noise for the same ε, and a promise that depends on others: that is the trade. Which of the
# two a hospital accepts stands in its own site file (`trust = [...]`).
#
# ## 5 · At full size
#
# The same on BraTS or on any hospitals with a site file each, with several seeds, a third mode and
# the noise measured on the first update, is one command from a clone. It takes hours, runs every
# cell once, and goes on where it was stopped:
#
# ```
# python pipelines/trust_modes.py --study brats.toml --site site-01.toml --site site-02.toml ... \
#     --epsilon 8 --epsilon 3 --epsilon 1 --seed 1 --seed 2 --seed 3 --out runs/trust-modes
# ```
#
# What would differ:
#
# - **More patients, less noise.** The noise in the mean falls with the number of patients, at the
#   same ε. With 90 training patients at each of the four hospitals, and the same draws and steps, ε
#   = 1 would ask for about as much noise as ε = 8 does here.
# - **More to learn, more to lose.** Real scans are further from the public start than these, so
#   there is more to gain without noise. If all weights are trained, the norm of the noise grows
#   with the square root of their number, and the curve of Dice against ε becomes steep.
# - **Intervals over seeds.** They put the noise of training into the bars, which are honest only
#   then.
# - **The attacker's curves stay.** They depend on the noise and on draws and steps, and not on
#   images.
#
# On four hospitals of TCGA-LGG, ε = 8 and 3 cost nothing beyond chance, and ε = 1 did harm in every
# mode, in a secure sum the least: `notebooks/guides/evidence.md` has the table.
