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
# # Attacking our own promise
#
# A privacy promise is a claim about code. Accounting can be right while the code that it describes
# forgets the noise, clips the wrong thing or draws patients in another way, and nobody would see it
# in the Dice. So medfl attacks itself: `medfl audit` measures the engine, looks for patients in
# what was released, and sets every finding beside the promise. This notebook shows
#
# 1. what one update betrays of a patient, with and without noise, as a picture;
# 2. everything that the audit found, on a run made here;
# 3. what it would look like if the mechanism were broken.
#
# **What an audit can't do.** It can convict and never acquit. A measured number that contradicts
# the promise proves a fault; numbers that don't are what a right mechanism would show, and what a
# fault that nobody thought of would show, too. The promise itself rests on the proof and on the
# review of the code.
#
# It takes some minutes on two CPU cores.

# %%
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import medfl

SIZES = {
    "default": {
        "patients": (24, 20),
        "shape": (64, 64, 48),
        "spacing": (2.8, 2.8, 3.4),
        "crop": (32, 32, 24),
        "rounds": 10,
        "jobs": 2,
        "canaries": 2000,
        "iterations": 350,
        "bugs": ("half of the noise", "clipped per crop", "somebody never drawn"),
    },
    "small": {  # for the tests: everything runs, and shows little
        "patients": (4, 4),
        "shape": (32, 32, 24),
        "spacing": (5.6, 5.6, 6.8),
        "crop": (16, 16, 16),
        "rounds": 1,
        "jobs": 1,
        "canaries": 100,
        "iterations": 3,
        "bugs": ("half of the noise",),
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

# %% [markdown]
# ## 1 · A run to attack
#
# Two synthetic hospitals train together under ε = 8. The same training without noise runs beside
# it, so that each attack can be tried where nothing holds it back: an attack that finds nothing
# there would say nothing about the noise.

# %%
files = medfl.write_hospitals(
    Path("hospitals"), patients=size["patients"], shape=size["shape"], spacing=size["spacing"]
)
sites = [medfl.load_site(file) for file in files]
STUDY = f"""\
id = "attacked"
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
epsilon = 8.0
sampling_prob = 0.5
clip_norm = 1.0
clipping = "normalised"

[training]
rounds = {size["rounds"]}
local_steps = 1
optimizer = "sgd"
learning_rate = 1.0
trainable = ["norms", "conv_final.*"]

[aggregation]
strategy = "fedavg"
min_sites = 2

[evaluation]
every = {size["rounds"]}
overlap = 0.25
baselines = ["non-private"]
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
"""
Path("study.toml").write_text(STUDY, encoding="utf-8")
study = medfl.load_study("study.toml")
run = Path("run")
summary = medfl.run_study(study, sites, out=run, jobs=size["jobs"])


# %% [markdown]
# ## 2 · What one update betrays
#
# `audit_run` (on the command line: `medfl audit run hospitals/*.toml`) makes all attacks at once,
# and writes what it finds into the run folder.


# %%
class Parts:
    """One line for each part of the audit."""

    def __init__(self):
        self.told = set()

    def __call__(self, part, *_):
        if part not in self.told:
            self.told.add(part)
            print(f"— {part}")


audit = medfl.audit_run(
    run, sites, advance=Parts(), canaries=size["canaries"], iterations=size["iterations"]
)

# %% [markdown]
# One of the attacks is *gradient inversion* (Geiping et al., 2020). A curious server gets a
# hospital's update, and looks for the image that would have caused just this update. Everything is
# made easy for it: one step, in which a single patient was drawn, a network of a kind that is easy
# to invert, a coarse image, and the tumour's outline known beforehand. The patient is synthetic.

# %%
found = audit.inversion
depth = found.axial_slice
brightest = float(np.percentile(found.patient_DHW[found.patient_DHW > 0], 99.5))
right, anterior, _ = found.spacing_mm

picture, panels = plt.subplots(1, 3, figsize=(8.4, 3.4), layout="constrained")
for panel, volume, title in (
    (panels[0], found.patient_DHW, "the patient"),
    (
        panels[1],
        found.without_noise_DHW,
        f"recovered without noise\nr = {found.correlation_without_noise:.2f}",
    ),
    (
        panels[2],
        found.with_noise_DHW,
        f"recovered from what leaves the hospital\nr = {found.correlation_with_noise:.2f}",
    ),
):
    shades = volume[::-1, ::-1, depth].T
    panel.imshow(shades, cmap="gray", vmin=0, vmax=brightest, aspect=anterior / right)
    panel.set_title(title)
    panel.set_axis_off()
plt.show()
print(f"norm of the noise over that of the patient's gradient: {found.noise_over_signal:.0f}")

# %% [markdown]
# Clipping alone hides nothing: it changes the length of the gradient, and the attack needs its
# direction only. The noise is what hides the patient.
#
# Two honest remarks. The update *with* noise is that of one step of this study, so that the noise
# is what its ε asks for; a larger ε leaves less of it. And a picture that fails is weaker evidence
# than it seems: somebody may think of a better attack tomorrow. ε covers that one as well, the
# picture doesn't.
#
# ## 3 · Everything that was found
#
# Each row is one attack: what is promised, what was found, and the most that this attack could have
# shown at all. "By chance" is what a right mechanism stays within in all but one of ten thousand
# audits. The results are in the run folder, and in its report.

# %%
results = medfl.read_run(run)
table = medfl.audit_table(results.audit)


def print_table(table, widths):
    """Plain text in columns, long cells folded."""
    for row in (table.head, *table.rows):
        cells = [
            textwrap.wrap(cell, width) or [""] for cell, width in zip(row, widths, strict=True)
        ]
        for line in range(max(map(len, cells))):
            parts = [cell[line] if line < len(cell) else "" for cell in cells]
            padded = [part.ljust(width) for part, width in zip(parts, widths, strict=True)]
            print("  ".join(padded).rstrip())


print_table(table, (44, 9, 30, 9, 8))
print()
print("everything holds" if audit.passed else "BROKEN")

# %% [markdown]
# How to read some of them:
#
# - *How far one patient moves a step*: canary patients with huge gradients are put in and left out.
#   The difference is at most C, or clipping is broken.
# - *Noise of a step*, *shared by two steps*, *that tells who was drawn*: the noise is as large as
#   was accounted for, fresh, normal in its tails, and knows nothing of the patients.
# - *One patient of this run taken away*: the run's own patients are left out in turn, from the
#   files on. Whatever else changes in a round would be somebody else's crop, seed or cache, and
#   never may.
# - *Canary patients*: many made-up patients take part by a coin each, and a server that sees every
#   update guesses the coins. What it gets right is a *lower bound* on ε, with 95 % confidence.
# - *Members found by their loss*: a model that has learnt patients by heart has a smaller loss on
#   them. Look at the model without noise first. If the attack fails there as well, so short a
#   training learnt nobody by heart, and the noise must not take the credit.

# %%
canaries = results.audit.canaries
picture, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.2), layout="constrained")

bars = (
    ("promised", canaries.claimed_epsilon, "#b22222"),
    ("shown, with 95 % confidence", canaries.shown.epsilon, "#0072b2"),
    ("estimated, no bound", canaries.estimate.epsilon, "#56b4e9"),
    ("largest showable", canaries.largest_showable.epsilon, "#dddddd"),
)
for row, (_, value, colour) in enumerate(bars):
    left.barh(row, value, color=colour, height=0.6)
    left.text(value, row, f" {value:.2f}", va="center")
left.set_yticks(range(len(bars)), [name for name, _, _ in bars])
left.invert_yaxis()
left.margins(x=0.15)
guesses = f"{canaries.guessed} guesses about {canaries.canaries:,} canary patients"
left.set(xlabel="ε of the small federation", title=guesses)

for attack in results.audit.membership:
    rates = attack.rates
    row = 1 if attack.variant == "federated" else 2
    label = "private model" if row == 1 else "model without noise"
    right.plot([rates.auc_low, rates.auc_high], [row, row], linewidth=5, color="#9ecae1")
    right.plot(rates.auc, row, "o", color="#0072b2")
    right.text(rates.auc, row - 0.18, f"{label}: {rates.auc:.2f}", ha="center")
right.axvline(0.5, color="#7f7f7f", linestyle="dotted")
right.text(0.5, 2.45, " a coin", color="#7f7f7f")
right.set(
    xlim=(0, 1),
    ylim=(2.6, 0.5),
    yticks=[],
    xlabel="chance that a member's loss gives them away (AUC)",
    title=f"{rates.members} members against {rates.non_members} others, by their loss",
)
plt.show()

# %% [markdown]
# ## 4 · What a broken mechanism would look like
#
# First in one dimension, where everything can be seen. A step releases a sum; look at it along the
# direction of one patient, who moves it by C if present, and add the noise. An attacker who knows
# all the rest accuses the patient if the sum is above a threshold. Three engines are asked many
# times, with the patient and without: a right one; one that adds half of the noise; and one that
# clips each of a patient's two crops instead of the patient, so that the sum moves by 2 C. This
# part is a toy, and made of NumPy alone. The grey curve is the promise, which no attack may cross.
# (Half of the noise and twice the reach are the same to an attacker: their curves coincide.)

# %%
SIGMA, ASKED = 1.5, 20_000
ENGINES = {
    "right": (1.0, SIGMA, "#0072b2"),
    "half of the noise": (1.0, SIGMA / 2, "#d55e00"),
    "clipped per crop": (2.0, SIGMA, "#e69f00"),
}


def found_members(reach, noise, false_alarms, generator):
    """Share of members found at each share of false alarms, as an attacker would measure it."""
    without = generator.normal(0, noise, ASKED)
    present = generator.normal(reach, noise, ASKED)
    thresholds = np.quantile(without, 1 - false_alarms)
    return np.array([(present > threshold).mean() for threshold in thresholds])


generator = np.random.default_rng(0)
false_alarms = np.linspace(0.001, 0.999, 200)
picture, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.6), layout="constrained")
values = np.linspace(-5, 7, 400)
for place, (name, (reach, noise, colour)) in enumerate(ENGINES.items()):
    for centre, style in ((0, "dashed"), (reach, "solid")):
        bell = np.exp(-0.5 * ((values - centre) / noise) ** 2) / noise
        left.plot(values, bell / 1.4 - place, color=colour, linestyle=style)
    left.text(-5, 0.15 - place, name, color=colour)
left.set(title="sum along one patient: present (solid), absent (dashed)", xlabel="in units of C")
left.set_yticks([])
left.spines["left"].set_visible(False)

promised = found_members(1.0, SIGMA, false_alarms, np.random.default_rng(1))
right.plot(false_alarms, promised, color="#999999", linewidth=6, alpha=0.5, label="promised")
for name, (reach, noise, colour) in ENGINES.items():
    measured = found_members(reach, noise, false_alarms, generator)
    style = "dashed" if reach > 1 else "solid"
    right.plot(false_alarms, measured, color=colour, linestyle=style, label=name)
right.plot([0, 1], [0, 1], color="#7f7f7f", linestyle="dotted")
right.set(xlabel="share accused wrongly", ylabel="share of members found")
right.set_title("what an attacker measures")
right.legend(loc="lower right")
plt.show()

# %% [markdown]
# Now for the real thing. The repository keeps 55 bugs, which `pipelines/planted_bugs.py` plants one
# at a time into the code that users run, each in a process of its own, while no file changes. Here
# are some of them, and the figures of the audit's mechanism test that break. The first row is the
# code as it is.

# %%
script = Path(medfl.__file__).resolve().parents[1] / "pipelines" / "planted_bugs.py"
chosen = [word for bug in size["bugs"] for word in ("--only", bug)]
subprocess.run(
    [sys.executable, script, *chosen, "--column", "mechanism", "--jobs", "2", "--out", "bugs.json"],
    check=True,
    capture_output=True,
)
planted = json.loads(Path("bugs.json").read_text(encoding="utf-8"))
figures = [figure.name for figure in results.audit.mechanism.figures]
broken = {}
for row in planted["bugs"]:
    cell = row["cells"]["mechanism"]
    broken[row["name"]] = set(cell["found"].split(", ")) & set(figures)
    print(f"{row['name']}: {row['sentence']}")
    print(textwrap.fill(f"broken: {cell['found'] or 'nothing'}", 96, initial_indent="    "))

# %%
picture, panel = plt.subplots(figsize=(9.6, 1.5 + 0.3 * len(broken)), layout="constrained")
held = np.array([[name in names for name in figures] for names in broken.values()])
panel.imshow(held, cmap="OrRd", vmin=0, vmax=1.4, aspect="auto")
panel.set_yticks(range(len(broken)), list(broken))
panel.set_xticks(range(len(figures)), figures, rotation=90, fontsize=7)
panel.set_xticks(np.arange(len(figures) + 1) - 0.5, minor=True)
panel.set_yticks(np.arange(len(broken) + 1) - 0.5, minor=True)
panel.grid(which="minor", color="white", linewidth=2)
panel.tick_params(which="both", length=0)
panel.set_title("figures of the mechanism test that each bug breaks (dark)")
plt.show()

# %% [markdown]
# The columns say what to look at when an audit fails: too little noise shows in every figure of the
# noise, wrong clipping in how far a patient moves a sum, wrong draws in who is drawn. `medfl audit`
# then ends with status 3, and the report's section on attacks says not to rely on it.
#
# ## 5 · At full size
#
# Run it on a study of your own, with the site files for open data and without them for a hospital's
# run, whose patients it leaves alone:
#
# ```
# medfl simulate brats.toml site-0*.toml --out runs/brats
# medfl audit runs/brats site-0*.toml            # a hospital: medfl audit RUN_DIR
# python pipelines/planted_bugs.py --jobs 2      # all 55 bugs, all parts of the audit and the tests
# ```
#
# What would differ on BraTS:
#
# - The mechanism test, the canaries and the inversion look at the installation and at the study's
#   noise, and find the same. They take as long as here.
# - Members are told from others by hundreds of patients instead of some dozens, so that a leak of a
#   few percent would show; here it would not. A longer training of all weights learns patients by
#   heart without noise, and the attack then has something to find.
# - With more patients a hospital needs the same noise on the sum for the same ε. It hides the
#   patient in the picture as well as here; its share in the mean, which the model suffers from,
#   falls.
