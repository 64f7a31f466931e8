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
# # Who gains by joining?
#
# A hospital that keeps its model to itself owes nobody noise. It may train on its own patients as
# often and as exactly as it likes. So the question that a hospital has to ask is not whether a
# federated model is good, but whether joining gives it *more than it could have had alone, without
# noise*.
#
# This notebook answers it for four synthetic hospitals of very unequal size. Every hospital gets
# six models, all of which start from the same public model and are scored on the same held-out
# patients:
#
# | model | trained on | noise | who may have it |
# |---|---|---|---|
# | start | synthetic patients who belong to no hospital | none needed | everybody |
# | alone | the hospital's own patients | none: it stays inside | the hospital |
# | alone, with noise | the hospital's own patients | for ε = 8 | everybody |
# | federated | the patients of all hospitals | for ε = 8 | everybody |
# | adapted at home | all, then the hospital's own | for ε = 8, then none | the hospital |
# | federated, no noise | the patients of all hospitals | none | nobody, in earnest |
#
# **Gain** below means *adapted at home* less *alone*: what a hospital has after joining less what
# it would have had otherwise. In both cases it keeps whichever candidate does best in a
# cross-validation on its own training patients, the model that it began with included. To stay
# alone is among the candidates after joining, too: if the hospital prefers it, the gain is exactly
# 0.
#
# It takes some minutes on two CPU cores. The patients are synthetic, so the numbers say how the
# question is asked and answered, and not how large a gain real hospitals have; for those see the
# end.

# %%
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import medfl

SIZES = {
    "default": {
        "patients": (36, 24, 16, 8),
        "shape": (64, 64, 48),
        "spacing": (2.8, 2.8, 3.4),
        "crop": (32, 32, 24),
        "rounds": 12,
        "jobs": 2,
        "steps_at_home": 25,
    },
    "small": {  # for the tests: everything runs, nothing is learnt
        "patients": (8, 4, 4, 4),
        "shape": (32, 32, 24),
        "spacing": (5.6, 5.6, 6.8),
        "crop": (16, 16, 16),
        "rounds": 2,
        "jobs": 1,
        "steps_at_home": 2,
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
MODELS = {
    "initial-only": ("start", "#7f7f7f", "s"),
    "local-only": ("alone, with noise", "#e69f00", "v"),
    "alone": ("alone", "#d55e00", "X"),
    "federated": ("federated", "#56b4e9", "D"),
    "adapted": ("adapted at home", "#0072b2", "o"),
    "non-private": ("federated, no noise", "#009e73", "^"),
}
REGIONS = {"WT": "whole tumour", "TC": "tumour core"}

# %% [markdown]
# ## 1 · Four hospitals of unequal size
#
# A quarter of the patients of each hospital is held out: no training and no choice sees them.

# %%
files = medfl.write_hospitals(
    Path("hospitals"), patients=size["patients"], shape=size["shape"], spacing=size["spacing"]
)
for file in files:
    text = file.read_text(encoding="utf-8")
    file.write_text(
        text.replace("steps = 25", f"steps = {size['steps_at_home']}"), encoding="utf-8"
    )
sites = [medfl.load_site(file) for file in files]
cohorts = {site.name: medfl.SiteCohort(site) for site in sites}
for name, cohort in cohorts.items():
    print(f"{name:6} {len(cohort.training):3} training, {len(cohort.held_out):2} held out")


# %%
def show(panel, image, labels, *, title):
    """The axial slice with most of the tumour, in radiological view, with the tumour's outline."""
    depth = int(np.argmax((labels > 0).sum(axis=(0, 1))))
    shades, outline = image[::-1, ::-1, depth].T, labels[::-1, ::-1, depth].T > 0
    top = max(float(np.percentile(shades, 99.5)), 1e-6)
    panel.imshow(shades, cmap="gray", vmin=0, vmax=top, interpolation="bicubic")
    if outline.any():
        panel.contour(outline.astype(float), levels=[0.5], colors="#f0e442", linewidths=1.2)
    panel.set_title(title)
    panel.set_axis_off()


picture, panels = plt.subplots(1, 4, figsize=(7.8, 2.3), layout="constrained")
for panel, (name, cohort) in zip(panels, cohorts.items(), strict=True):
    case = cohort.training[0].cases[0]
    image, labels = medfl.read_volume(case.images["t2f"]), medfl.read_volume(case.mask)
    show(panel, image, labels, title=f"{name}: FLAIR")
plt.show()

# %% [markdown]
# ## 2 · The study
#
# It starts from a model that comes with medfl and was trained on synthetic patients alone, of looks
# that none of these hospitals has. What a hospital's own scanner changes is mostly contrast and
# brightness, so only the normalisation layers and the last layer are trained: a few hundred
# numbers. The noise of differential privacy is added to these alone, and is that much smaller.

# %%
STUDY = f"""\
id = "who-gains"
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
strategy = "fedavgm"
server_learning_rate = 0.2
momentum = 0.5
ema_decay = 0.8
min_sites = 3

[evaluation]
every = {size["rounds"]}
overlap = 0.25
baselines = ["initial-only", "local-only", "alone", "adapted", "non-private"]
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
Path("study.toml").write_text(STUDY, encoding="utf-8")
study = medfl.load_study("study.toml")
plan = medfl.plan_study(study, sites)

print("noise in the mean gradient of one step, as a share of what one patient may weigh:")
for at in plan.sites:
    print(f"  {at.site:10} alone with noise {at.noise_per_coordinate:.3f}")
print(f"  {'together':10} federated        {plan.federation.noise_per_coordinate:.3f}")
print(f"trained: {plan.parameters:,} numbers of the network")

# %% [markdown]
# The smaller a hospital, the more noise it would need alone, since one patient's share of the mean
# is larger. The average of all hospitals is less noisy than each of them.
#
# ## 3 · All six models of every hospital


# %%
class Phases(medfl.Silent):
    """One line for each part of the work."""

    def phase(self, name):
        if name.startswith("baseline"):
            print(f"— {MODELS[name.removeprefix('baseline ')][0]}")


print("— federated, private")
run = Path("run")
medfl.run_study(study, sites, out=run, jobs=size["jobs"], progress=Phases())
results = medfl.read_run(run)

# %% [markdown]
# ## 4 · What every hospital has
#
# Each mark is the mean Dice of a hospital's held-out patients (1: the outline is perfect). The grey
# line goes from what a hospital has alone (cross) to what it has by joining (blue circle).


# %%
def dice_of(variant, region, site):
    """Mean Dice of one model at one hospital, or at all of them."""
    rows = [row for row in results.scores_of(variant) if site in ("", row.site)]
    return medfl.mean_dice(rows, region)


names = [site.name for site in sites]
picture, panels = plt.subplots(1, 2, figsize=(9.6, 3.5), sharey=True, layout="constrained")
for panel, (region, title) in zip(panels, REGIONS.items(), strict=True):
    for row, site in enumerate(names):
        found = {variant: dice_of(variant, region, site).value for variant in MODELS}
        panel.plot([found["alone"], found["adapted"]], [row, row], color="#b0b0b0", linewidth=3)
        for variant, (label, colour, marker) in MODELS.items():
            panel.plot(
                found[variant],
                row,
                marker=marker,
                markersize=11 if variant == "adapted" else 6,
                markeredgewidth=2 if variant == "adapted" else 1,
                fillstyle="none" if variant == "adapted" else "full",
                color=colour,
                linestyle="none",
                label=label if row == 0 else None,
            )
    panel.set(title=title, xlabel="mean Dice of held-out patients")
    panel.set_yticks(range(len(names)), [f"{n} ({len(cohorts[n].held_out)})" for n in names])
    panel.margins(x=0.08, y=0.2)
    panel.grid(axis="x", alpha=0.3)
panels[0].invert_yaxis()
marks, labels = panels[0].get_legend_handles_labels()
picture.legend(marks, labels, loc="outside lower center", ncols=len(MODELS), fontsize=8)
plt.show()


# %%
def print_table(table):
    """Plain text with aligned columns."""
    rows = [table.head, *table.rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.head))]
    print(table.caption)
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())


print_table(medfl.dice_table(results))
print()
print_table(medfl.difference_table(results))

# %% [markdown]
# A cross-validation is as good as its patients are many: a hospital with six of them may well keep
# a model that is worse than the start on patients it has not seen. What it gets from the others is
# then worth most.
#
# `ET`, the enhancing rim, is in the tables because the starting model has it. It is a few voxels
# wide here, some patients have none, and no model finds it well, so it is left out of the pictures.
#
# ## 5 · Who gains, and is it more than chance?
#
# The gain of each hospital, patient by patient: *adapted at home* less *alone* on the same held-out
# patients. The bars are 95 % intervals: how far the mean gain might move with other patients of the
# same kind. A bar that crosses the line at 0 means that **this run cannot tell a gain from a
# loss**.

# %%
picture, panels = plt.subplots(1, 2, figsize=(9.6, 3.1), sharey=True, layout="constrained")
for panel, (region, title) in zip(panels, REGIONS.items(), strict=True):
    panel.axvline(0, color="#7f7f7f", linewidth=1)
    for row, site in enumerate([*names, ""]):
        gain = medfl.gain(results, region, site=site)
        sure = gain.patients > 4 and (gain.low > 0 or gain.high < 0)
        panel.plot([gain.low, gain.high], [row, row], color="#0072b2", linewidth=5, alpha=0.3)
        panel.plot(gain.value, row, "o", color="#0072b2", markerfacecolor=None if sure else "white")
        panel.annotate(
            f"{gain.value:+.3f}",
            (gain.value, row),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    panel.set(title=f"{title}: gain in Dice by joining", xlabel="adapted at home less alone")
    rows = [f"{n} ({len(cohorts[n].held_out)})" for n in names] + ["all"]
    panel.set_yticks(range(len(rows)), rows)
    panel.margins(x=0.1, y=0.2)
panels[0].invert_yaxis()
plt.show()

print_table(medfl.gains_table(results))

# %% [markdown]
# Filled dots are gains or losses beyond chance, as far as patients go; open ones are not. Two more
# things have to be said before a dot is read as a success:
#
# - **A hospital of a few held-out patients has no useful interval.** With two patients the bar is
#   no more than the distance between them, so dots of fewer than five patients are left open.
# - **The noise is drawn afresh in every run.** The bars do not cover it. Run this notebook again,
#   and the dots move; only several runs show by how much.
#
# So how many patients would be enough? If the gains of single patients scatter as they do here, the
# interval of their mean excludes 0 once there are about (2 · scatter / gain)² of them.


# %%
def gains_of_patients(region):
    """Adapted less alone, one number a held-out patient of all hospitals."""
    by_patient = [
        {(row.site, row.patient): row.dice for row in rows if row.region == region}
        for rows in (results.scores_of("adapted"), results.scores_of("alone"))
    ]
    adapted, alone = by_patient
    return np.array([adapted[patient] - alone[patient] for patient in sorted(adapted)])


for region, title in REGIONS.items():
    gains = gains_of_patients(region)
    scatter = gains.std(ddof=1)
    print(f"{title}: {len(gains)} patients, mean gain {gains.mean():+.3f}, scatter {scatter:.3f}")
    for wanted in (0.005, 0.01, 0.02):
        needed = int(np.ceil((2 * scatter / wanted) ** 2))
        print(f"    to show a gain of {wanted:g}: about {needed} held-out patients")

# %% [markdown]
# ## 6 · One patient
#
# Of the hospitals' held-out patients, the one whom the federated model helped most, and the one
# whom it helped least, beside the starting model. (The models of section 4 that a hospital keeps,
# *alone* and *adapted at home*, are scored and thrown away: a run folder may travel, and they may
# not.)

# %%
held_out = {
    (name, cohort.pseudonym(patient)): patient
    for name, cohort in cohorts.items()
    for patient in cohort.held_out
}
start, federated = (
    {(row.site, row.patient): row.dice for row in results.scores_of(variant) if row.region == "WT"}
    for variant in ("initial-only", "federated")
)
ranked = sorted(start, key=lambda patient: federated[patient] - start[patient])
predictors = {
    "start": medfl.Predictor(run / "checkpoints" / "initial.safetensors"),
    "federated": medfl.Predictor(run / "checkpoints" / "final.safetensors"),
}
by_site = {site.name: site for site in sites}

picture, panels = plt.subplots(2, 3, figsize=(6.6, 4.9), layout="constrained")
for row, patient in zip(panels, (ranked[-1], ranked[0]), strict=True):
    case, data = held_out[patient].cases[0], by_site[patient[0]].data
    image, truth = medfl.read_volume(case.images["t2f"]), medfl.read_volume(case.mask)
    show(row[0], image, truth, title=f"{patient[0]}: truth")
    for panel, (name, predictor), dice in zip(
        row[1:], predictors.items(), (start[patient], federated[patient]), strict=True
    ):
        mask = Path("mask.nii.gz")
        mask.unlink(missing_ok=True)
        medfl.predict_case(predictor, case.mask.parent, data=data, out=mask)
        depth = int(np.argmax((truth > 0).sum(axis=(0, 1))))
        shown = np.zeros_like(truth)
        shown[:, :, depth] = medfl.read_volume(mask)[:, :, depth]
        slab = np.zeros_like(image)
        slab[:, :, depth] = image[:, :, depth]
        show(panel, slab, shown, title=f"{name}: Dice {dice:.2f}")
plt.show()

# %% [markdown]
# ## 7 · At full size
#
# The same question on BraTS, or on any hospitals with a site file each (as at the end of
# `01_federated_brats`), is one command from a clone. It runs every ε and seed once, goes on where
# it was stopped, and writes a table and a picture with intervals over patients *and* seeds:
#
# ```
# python pipelines/who_gains.py --study brats.toml --site site-01.toml --site site-02.toml ... \
#     --epsilon 8 --epsilon 3 --seed 1 --seed 2 --seed 3 --out runs/who-gains
# ```
#
# What would differ there:
#
# - **Intervals.** With hundreds of held-out patients they are several times narrower, and several
#   seeds put the noise of training into them.
# - **Noise.** A hospital of 90 training patients adds a fraction of the noise of one of 12, so ε =
#   8 costs less, and more of the network can be trained.
# - **The start.** Synthetic patients are a poorer school for real ones than for each other: there
#   is more to gain from real patients, alone and together.
# - **What is left to gain.** A hospital with hundreds of patients of its own needs the others less
#   than one with ten. The small ones have most to win, and least to add.
#
# On four hospitals of the public TCGA-LGG collection, with three seeds, joining at ε = 8 gained
# 0.020 in Dice over staying alone, with an interval from -0.036 to +0.083, and one hospital of four
# was better off alone: `notebooks/guides/evidence.md` has that table and how to repeat it.
