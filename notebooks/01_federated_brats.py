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
# # Brain-tumour segmentation across four hospitals, with a privacy promise to every patient
#
# Four hospitals train one network together. Images never leave them: only weights do, and the
# weights carry noise, so that nobody can tell from them whether a given patient took part. This is
# **differential privacy** (DP), here with the *patient* as its unit.
#
# The notebook goes the whole way once: patients, crops, the plan, training, scores, a prediction,
# the report, and at the end how to point the same code at a BraTS folder. All patients are
# synthetic and belong to nobody. It takes a few minutes on two CPU cores.
#
# **What this run is not:** a benchmark. A coarse grid, a tiny network, few patients and few rounds
# keep it short, so the Dice scores are modest and move from run to run. Every number below is
# computed here; none is copied from elsewhere.
#
# | word | meaning here |
# |---|---|
# | patient | the unit that is protected, with all of their scans |
# | site | a hospital: its images, its own privacy policy, its own ledger |
# | step, round | a site makes noisy *steps*; after each *round* of them it sends its weights |
# | ε (epsilon) | the privacy loss: how much the released weights can reveal about one patient |
# | δ (delta) | the small probability with which the ε-promise may fail |

# %%
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np

import medfl

SIZES = {
    "default": {
        "patients": (40, 32, 24, 16),
        "shape": (48, 48, 36),
        "spacing": (3.8, 3.8, 4.6),
        "crop": (24, 24, 20),
        "rounds": 30,
        "pretraining": 100,
    },
    "small": {  # for the tests: everything runs, nothing is learnt
        "patients": (6, 5, 4, 4),
        "shape": (32, 32, 24),
        "spacing": (5.6, 5.6, 6.8),
        "crop": (16, 16, 16),
        "rounds": 3,
        "pretraining": 6,
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
MODALITIES = {"t1n": "T1", "t1c": "T1 contrast", "t2w": "T2", "t2f": "FLAIR"}
REGIONS = {"TC": "tumour core", "WT": "whole tumour"}
MODELS = {
    "federated": "federated, private",
    "initial-only": "starting point only",
    "non-private": "without noise",
    "threshold": "FLAIR threshold",
}
COLOURS = {
    "federated": "#0072b2",
    "initial-only": "#7f7f7f",
    "non-private": "#d55e00",
    "threshold": "#009e73",
}
LIMIT = "#b22222"

# %% [markdown]
# ## 1 · Four hospitals
#
# `write_hospitals` (on the command line: `medfl phantom`) writes synthetic brain MRI in the folder
# layout of BraTS 2021, and one *site file* a hospital. The hospitals differ in size, and each has
# a scanner look of its own.
#
# The site file is where a hospital decides. We let `south` be stricter than the others: it accepts
# a privacy loss of at most ε = 4, while the others accept 10.

# %%
files = medfl.write_hospitals(
    Path("hospitals"),
    patients=size["patients"],
    shape=size["shape"],
    spacing=size["spacing"],
    skull_stripped=True,
    seed=7,
)
strict = Path("hospitals/south.toml")
text = strict.read_text(encoding="utf-8")
strict.write_text(text.replace("epsilon = 10.0", "epsilon = 4.0"), encoding="utf-8")

sites = [medfl.load_site(file) for file in files]
for site in sites:
    count = len(list(site.data.root.iterdir()))
    print(
        f"{site.name:6} {count:3} patients, {site.declared_patients:3} of them for training; "
        f"accepts ε up to {site.privacy.epsilon:g} at δ = {site.privacy.delta:g}"
    )

# %% [markdown]
# One patient is one folder with four images and a mask:

# %%
one = min(sites[0].data.root.iterdir())
print(one.name)
for file in sorted(one.iterdir()):
    print("   ", file.name)

# %% [markdown]
# The upper row shows the four modalities of one patient, with the outline of the whole tumour
# (blue) and of its core (yellow). The lower row shows one further patient of each hospital, in
# FLAIR: every scanner has a contrast, noise and sharpness of its own.


# %%
def largest_slice(labels):
    """Number of the axial slice that holds most of the tumour."""
    return int(np.argmax((labels > 0).sum(axis=(0, 1))))


def show(panel, image, whole, core, *, title):
    """One axial slice in radiological view: the patient's right is on the left."""
    top = max(float(np.percentile(image, 99.5)), 1e-6)
    panel.imshow(image[::-1, ::-1].T, cmap="gray", vmin=0, vmax=top, interpolation="nearest")
    for inside, region in ((whole, "WT"), (core, "TC")):
        if np.any(inside):
            outline = np.asarray(inside, dtype=float)[::-1, ::-1].T
            panel.contour(outline, levels=[0.5], colors=[colours[region]], linewidths=1.2)
    panel.set_title(title)
    panel.set_axis_off()


def read_volume(path):
    """Voxels along right, anterior, superior."""
    return np.asarray(nib.load(path).dataobj)


colours = {"WT": "#56b4e9", "TC": "#f0e442"}
run = Path("run")  # the run folder of section 4
cohorts = [medfl.SiteCohort(site) for site in sites]
shown = cohorts[0].training[0].cases[0]
others = [cohort.training[1].cases[0] for cohort in cohorts]

picture, panels = plt.subplots(2, 4, figsize=(7.8, 4.3), layout="constrained")
for panel, (modality, path) in zip(panels[0], shown.images.items(), strict=True):
    labels = read_volume(shown.mask)
    depth = largest_slice(labels)
    plane = labels[:, :, depth]
    title = f"{sites[0].name}: {MODALITIES[modality]}"
    show(panel, read_volume(path)[:, :, depth], plane > 0, np.isin(plane, (1, 4)), title=title)
for panel, site, case in zip(panels[1], sites, others, strict=True):
    labels = read_volume(case.mask)
    depth = largest_slice(labels)
    plane = labels[:, :, depth]
    image = read_volume(case.images["t2f"])[:, :, depth]
    show(panel, image, plane > 0, np.isin(plane, (1, 4)), title=f"{site.name}: FLAIR")
plt.show()

# %% [markdown]
# ## 2 · The study, and the crops of one patient
#
# The *study file* is the coordinator's proposal to all hospitals, and all of it is public. Note
# what is absent: the amount of noise. It follows from the target `epsilon`, from `sampling_prob`
# and from the number of steps.
#
# The network starts from a short training on further synthetic patients who belong to no hospital
# (`[synthetic]`), which costs no privacy at all. Where private patients are few, a good public
# starting point matters most.

# %%
STUDY = f"""\
id = "notebook"
seed = 1

[input]
modalities = ["t1n", "t1c", "t2w", "t2f"]
regions = ["TC", "WT"]            # tumour core and whole tumour
crop_size = {list(size["crop"])}
crops_per_patient = 2

[network]
name = "SegResNet"                # any network of MONAI that keeps no running statistics
arguments = {{ init_filters = 8, blocks_down = [1, 1], blocks_up = [1] }}

[privacy]
epsilon = 8.0                     # target; a stricter site keeps to its own
sampling_prob = 0.25              # q: each patient takes part in a step with this probability
clip_norm = 1.0                   # C: the most that one patient can weigh in a step

[training]
rounds = {size["rounds"]}
local_steps = 1
optimizer = "sgd"
learning_rate = 1.0

[aggregation]
strategy = "fedadam"
server_learning_rate = 5e-3
ema_decay = 0.9
min_sites = 3

[evaluation]
every = 5
baselines = ["initial-only", "non-private", "threshold"]
pictures = 3

[synthetic]
shape = {list(size["shape"])}
spacing = {list(size["spacing"])}
skull_stripped = true
seed = 1000
pretraining_steps = {size["pretraining"]}
pretraining_learning_rate = 5e-3
"""
Path("study.toml").write_text(STUDY, encoding="utf-8")
study = medfl.load_study(Path("study.toml"))

# %% [markdown]
# Whenever a patient is drawn for a step, K = 2 crops are cut from their scans, one of them centred
# on tumour. Below are two such draws of the same patient.
#
# **Why this matters for privacy:** the loss is averaged over *all* crops of a patient, which gives
# *one* gradient, and that gradient is scaled to a length of at most C. A patient thus weighs at
# most C, however many scans or crops they have. Scaling each crop's gradient on its own would let
# one patient weigh up to K times as much, and the stated ε would be wrong.

# %%
patient = cohorts[0].training[0]
draws = [cohorts[0].draw_crops(study, patient, seed=seed) for seed in (3, 4)]
flair = study.input.modalities.index("t2f")
core, whole = (study.input.regions.index(region) for region in ("TC", "WT"))
middle = study.input.crop_size[2] // 2

picture, panels = plt.subplots(1, 4, figsize=(7.8, 2.25), layout="constrained")
for number, panel in enumerate(panels):
    draw, crop = divmod(number, study.input.crops_per_patient)
    images, regions = draws[draw]
    show(
        panel,
        images[crop, flair, :, :, middle].numpy(),
        regions[crop, whole, :, :, middle].numpy(),
        regions[crop, core, :, :, middle].numpy(),
        title=f"draw {draw + 1}, crop {crop + 1}",
    )
plt.show()
print(f"one draw: images {tuple(draws[0][0].shape)}, regions {tuple(draws[0][1].shape)}")

# %% [markdown]
# ## 3 · The plan: from a target ε to noise
#
# The promise: take any patient, and let an attacker know everything else, all other patients
# included. Whatever is released is at most $e^{\varepsilon}$ times more likely with this patient
# than without, or the other way round, except for a probability of δ.
#
# One noisy step of a site keeps it like this:
#
# 1. draw each of the n training patients independently with probability q, in secret;
# 2. compute one gradient a patient and scale it to a length of at most C;
# 3. add them up, and add Gaussian noise with standard deviation $\sigma$ C to every coordinate;
# 4. divide by the constant L = q n, and take the step.
#
# A patient changes the sum by at most C, and the noise is $\sigma$ times that. T steps are taken in
# all. An *accountant* turns (q, $\sigma$, T, δ) into ε, and the *planner* inverts it: the smallest
# $\sigma$ whose ε stays within both the study's target and the site's own policy, and never below
# the site's own floor. `medfl plan` prints the same. No image is read for it.


# %%
def rounded_up(epsilon):
    """A privacy loss is never shown smaller than it is."""
    return f"{np.ceil(100 * epsilon) / 100:.2f}"


def print_plan(plan):
    """One line a site."""
    print(
        f"{'site':8} {'patients n':>10} {'q':>5} {'steps T':>8} {'σ':>7} {'L = q n':>8} "
        f"{'ε after':>8} {'accepted':>9} {'noise / C':>10}"
    )
    for at in plan.sites:
        mechanism = at.mechanism
        print(
            f"{at.site:8} {mechanism.declared_patients:10} {mechanism.sampling_prob:5} "
            f"{at.total_steps:8} {mechanism.noise_multiplier:7.3f} {mechanism.divisor:8.2f} "
            f"{rounded_up(at.epsilon):>8} {at.epsilon_budget:9g} "
            f"{at.noise_per_coordinate:10.3f}"
        )


plan = medfl.plan_study(study, sites)
print_plan(plan)

# %% [markdown]
# `south` needs a larger $\sigma$, since it accepts less. And `noise / C` = $\sigma$ / (q n), the
# noise in one step's *mean* gradient, shows what a small hospital pays: the same $\sigma$ is
# divided by fewer patients.
#
# The figure below asks the accountant three questions:
#
# - **Left: how does ε grow over the rounds?** Fast at first, then more slowly. It never falls, and
#   nothing that a site does later can take it back.
# - **Middle: what do q and T cost at the same $\sigma$?** A patient who is drawn more often, or for
#   more steps, leaves more traces.
# - **Right: what do they buy at the same ε?** A larger q asks for a larger $\sigma$, but the sum
#   also holds more patients, so that the noise in the mean falls. More steps ask for more noise in
#   each. This is why one prefers few steps with many patients in each.

# %%
target, delta = study.privacy.epsilon, sites[0].privacy.delta
mechanism = plan.sites[0].mechanism


def loss_after(mechanism, steps):
    """Epsilon of so many noisy steps."""
    return medfl.epsilon([medfl.Charge(mechanism=mechanism, steps=steps)], delta=delta)


picture, (left, centre, right) = plt.subplots(1, 3, figsize=(9.6, 3.1), layout="constrained")

rounds = range(1, study.training.rounds + 1)
by_noise = {}
for at in plan.sites:
    by_noise.setdefault(at.mechanism.noise_multiplier, []).append(at)
for (noise, members), colour in zip(by_noise.items(), ("#0072b2", "#d55e00"), strict=False):
    steps = members[0].mechanism.local_steps
    losses = [loss_after(members[0].mechanism, number * steps) for number in rounds]
    names = ", ".join(at.site for at in members)
    left.plot(rounds, losses, color=colour, linewidth=2, label=f"{names}\n(σ = {noise:.2f})")
    left.axhline(losses[-1], color=colour, linestyle="dotted", linewidth=1)
left.set(title="ε by round", xlabel="round", ylabel="ε", ylim=(0, 1.7 * target))
left.legend(loc="upper left", fontsize=8)

numbers_of_steps = [study.total_steps * factor for factor in (1, 2, 4, 8)]
for q, marker in ((0.1, "o"), (0.25, "s"), (0.5, "D")):
    losses = [loss_after(replace(mechanism, sampling_prob=q), t) for t in numbers_of_steps]
    centre.plot(numbers_of_steps, losses, marker=marker, markersize=4, label=f"q = {q}")
centre.axhline(target, color=LIMIT, linestyle="dashed", linewidth=1.2)
centre.set(title=f"same σ = {mechanism.noise_multiplier:.2f}: ε", ylabel="ε")
centre.set(xlabel="steps T")
centre.set(xscale="log", xticks=numbers_of_steps, xticklabels=numbers_of_steps)
centre.minorticks_off()
centre.set_ylim(bottom=0)
centre.legend(fontsize=8)

probabilities = (0.1, 0.25, 0.5)
for factor, marker in ((1, "o"), (4, "s")):
    steps = factor * study.total_steps
    noise = [
        medfl.noise_multiplier_for(epsilon=target, delta=delta, sampling_prob=q, steps=steps)
        / (q * mechanism.declared_patients)
        for q in probabilities
    ]
    right.plot(probabilities, noise, marker=marker, markersize=4, label=f"T = {steps}")
right.set(
    title=f"same ε = {target:g}: noise in the mean",
    xlabel="sampling probability q",
    ylabel=f"σ / (q n), n = {mechanism.declared_patients}",
)
right.set_xticks(probabilities)
right.set_ylim(bottom=0)
right.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## 4 · Run it
#
# `run_study` runs the same server and site code as a deployment, here with all sites in this
# process. In every round each site checks the request against its own policy, *charges its ledger
# before the first step*, trains with noise, and sends its weights; the server recomputes ε from
# what was reported, and combines the weights.
#
# Beside the private federation it makes three models for comparison: the starting point alone, the
# same training without noise (ε = ∞), and a plain brightness threshold on FLAIR. The second and
# the third use patients without protection, and the scores of held-out patients are exact. That is
# allowed here because the patients are synthetic; a hospital's site file forbids it.


# %%
class Lines(medfl.Silent):
    """One line for each phase, each fifth round and each evaluation."""

    def phase(self, name):
        print(f"— {name}")

    def round_finished(self, record):
        if record.round % study.evaluation.every == 0:
            losses = [f"{name} {at.epsilon:.2f}" for name, at in record.sites.items()]
            print(f"  round {record.round}: ε so far: {', '.join(losses)}")

    def scored(self, round_number, scores):
        dice = {region: [] for region in study.input.regions}
        for of_site in scores:
            for score in of_site.scores:
                dice[score.region].append(score.dice)
        means = [f"{region} {np.mean(values):.2f}" for region, values in dice.items()]
        print(f"  held-out Dice after round {round_number}: {', '.join(means)}")


summary = medfl.run_study(study, sites, out=run, progress=Lines())

# %% [markdown]
# ## 5 · What came out
#
# A run leaves a folder of plain files (JSON, CSV, safetensors). `read_run` reads it back, checks
# that the files agree with each other, and is all that the report is made from.
#
# Dice is the overlap of two outlines: 0 for none, 1 for perfect. The intervals say how much a mean
# would move with other patients of the same kind. The second table compares models on the *same*
# patients: where its interval holds 0, this run can't tell the two apart. No interval covers the
# noise of training, which another run would draw afresh: run it twice, and the means move.

# %%
results = medfl.read_run(run)


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

# %%
picture, panels = plt.subplots(1, 3, figsize=(9.6, 3.4), layout="constrained")
for panel, region in zip(panels, ("WT", "TC"), strict=False):
    scored = results.scored_rounds("federated")
    found = [
        medfl.mean_dice(results.scores_of("federated", at=number), region) for number in scored
    ]
    colour = COLOURS["federated"]
    low, high = [each.low for each in found], [each.high for each in found]
    panel.fill_between(scored, low, high, color=colour, alpha=0.18, linewidth=0)
    label = MODELS["federated"]
    panel.plot(scored, [each.value for each in found], color=colour, marker="o", label=label)
    for variant in results.variants[1:]:
        final = medfl.mean_dice(results.scores_of(variant), region)
        if final is not None:
            colour, label = COLOURS[variant], MODELS[variant]
            panel.axhline(final.value, color=colour, linestyle="dashed", label=label)
    panel.set(title=REGIONS[region], xlabel="round", ylabel="Dice", ylim=(0, 1))
    panel.set_xticks(scored)
lines, labels = panels[0].get_legend_handles_labels()
picture.legend(lines, labels, loc="outside lower left", ncols=len(lines), fontsize=8)

losses = list(results.privacy.values())
names = [loss.site for loss in losses]
panels[2].bar(names, [loss.epsilon_pld for loss in losses], width=0.6, color="#0072b2")
for position, loss in enumerate(losses):
    text = rounded_up(loss.epsilon_pld)
    panels[2].text(position, loss.epsilon_pld - 0.6, text, ha="center", color="white")
    panels[2].hlines(loss.budget, position - 0.4, position + 0.4, color=LIMIT, linewidth=2)
panels[2].set(title="ε spent, and what each site accepts (line)", ylabel="ε", ylim=(0, 11.5))
plt.show()

# %% [markdown]
# ### What does such an ε mean for one patient?
#
# ε itself is hard to picture, so the run also states what the strongest imaginable attacker could
# achieve: one who knows all other patients, the code, and everything that was released. These are
# upper limits for every attack there is, taken from the accountant's own trade-off curve.

# %%
loss = results.largest_loss
advantage = max(each.membership_advantage for each in losses)
found_out = max(each.tpr_at_1_percent_fpr for each in losses)
print(f"The largest loss is at {loss.site}: ε = {rounded_up(loss.epsilon_pld)} ", end="")
print(f"at δ = {loss.delta:g}, after {loss.steps} noisy steps.")
print("Did this patient take part? From even odds the attacker is right in at most ", end="")
print(f"{np.ceil(50 * (1 + advantage)):.0f} % of cases (a coin: 50 %).")
print("If 1 in 100 others may be accused wrongly, of those who took part at most ", end="")
print(f"{np.ceil(100 * found_out):.0f} % are found out (without any release: 1 %).")
print()
print("The same steps, counted in other ways:")
print(f"  PLD, used here          ε = {rounded_up(loss.epsilon_pld)}")
print(f"  PRV, as a cross-check   ε = {rounded_up(loss.epsilon_prv)}")
print(f"  RDP, a looser bound     ε = {rounded_up(loss.epsilon_rdp)}")
print(f"  one patient replaced    ε = {rounded_up(loss.epsilon_replace_one)} ", end="")
print("(by any other person, rather than left out)")

# %% [markdown]
# ## 6 · A prediction beside the truth
#
# `predict_case` (`medfl predict`) takes a case folder and a model file, and writes a mask on the
# grid of the case's own images. To be fair, here are three held-out patients by their Dice of the
# whole tumour: the worst, the one in the middle, and the best. A run folder knows patients by
# *pseudonym* only. The key to them is public for open data, so we can find the folders again; a
# hospital's key never leaves it.

# %%
held_out = {
    (site.name, cohort.pseudonym(patient)): patient
    for site, cohort in zip(sites, cohorts, strict=True)
    for patient in cohort.held_out
}
ranked = sorted(
    (score.dice, score.site, score.patient)
    for score in results.scores_of("federated")
    if score.region == "WT"
)
chosen = {"worst": ranked[0], "middle": ranked[len(ranked) // 2], "best": ranked[-1]}

picture, panels = plt.subplots(2, 3, figsize=(6.0, 4.7), layout="constrained")
predictor = medfl.Predictor(run / "checkpoints" / "final.safetensors")
for column, (rank, (dice, site, patient)) in enumerate(chosen.items()):
    case = held_out[site, patient].cases[0]
    mask = Path(f"{rank}.nii.gz")
    medfl.predict_case(predictor, case.mask.parent, data=sites[0].data, out=mask)
    truth, predicted = read_volume(case.mask), read_volume(mask)
    depth = largest_slice(truth)
    image = read_volume(case.images["t2f"])[:, :, depth]
    for row, (name, labels) in enumerate((("truth", truth), ("prediction", predicted))):
        plane = labels[:, :, depth]
        title = f"{rank} ({site}), Dice {dice:.2f}\n{name}" if row == 0 else name
        show(panels[row, column], image, plane > 0, np.isin(plane, (1, 4)), title=title)
plt.show()

# %% [markdown]
# ## 7 · The report
#
# `write_report` (`medfl report`) makes one offline page from the run folder, for those who decide
# and those who check: plain words first, then every number, what is covered by ε and what is not.

# %%
page = medfl.write_report(run)
for path in sorted(run.iterdir()):
    note = f"{path.stat().st_size / 1024:.0f} KB" if path.is_file() else "folder"
    print(f"{run.name}/{path.name:26} {note}")

# %% [markdown]
# One of its figures, the mean Dice at each site:

# %%
picture = plt.figure(figsize=(9.6, 3.6))
panel = picture.add_axes((0, 0, 1, 1))
panel.imshow(plt.imread(run / "figures" / "dice_by_site.png"))
panel.set_axis_off()
plt.show()

# %% [markdown]
# ## 8 · Your own BraTS folder
#
# Nothing changes but the files. Say BraTS 2021 lies in `BraTS2021`, with one folder for the cases
# of each hospital:
#
# ```
# BraTS2021/site-01/BraTS2021_00000/BraTS2021_00000_flair.nii.gz
# BraTS2021/site-01/BraTS2021_00000/BraTS2021_00000_seg.nii.gz
# ...
# ```
#
# Each hospital gets a site file, and all of them one study file. Relative paths start at the file's
# own folder. `declared_patients` is the number of *training* patients (here 120 less a quarter); it
# is public, and a site with another number is refused.

# %%
SITE = """\
name = "site-01"
purpose = "open-data"         # public research data, for simulation only
declared_patients = 90
weight = 90.0                 # of this site in the global model
state = "state/site-01"       # cache; for a hospital also ledger and keys
device = "cuda"

[data]
root = "BraTS2021/site-01"
layout = "brats2021"          # also brats2018, brats2019, brats2020, lgg
label_scheme = "brats"
modalities = ["t1n", "t1c", "t2w", "t2f"]
held_out = 0.25

[privacy]                     # the most that this site accepts
epsilon = 10.0
delta = 1e-5
share_metrics = true          # open data only
allow_baselines = true        # open data only
"""

BRATS_STUDY = """\
id = "brats"
seed = 1

[input]
modalities = ["t1n", "t1c", "t2w", "t2f"]
regions = ["TC", "WT", "ET"]
spacing = [2.0, 2.0, 2.0]     # mm; "native" keeps the 1 mm of BraTS
crop_size = [64, 64, 64]
crops_per_patient = 2

[network]
name = "SegResNet"
arguments = { init_filters = 8, blocks_down = [1, 2, 2], blocks_up = [1, 1] }

[privacy]
epsilon = 8.0
sampling_prob = 0.3

[training]
rounds = 100
local_steps = 1
optimizer = "sgd"
learning_rate = 1.0

[aggregation]
strategy = "fedadam"
server_learning_rate = 1e-3
ema_decay = 0.9
min_sites = 3

[evaluation]
every = 20
baselines = ["initial-only", "non-private", "local-only"]

[synthetic]
shape = [120, 120, 78]
spacing = [2.0, 2.0, 2.0]
skull_stripped = true
seed = 1000
pretraining_patients = 80
pretraining_steps = 400
"""

Path("brats.toml").write_text(BRATS_STUDY, encoding="utf-8")
for number in range(1, 5):
    name = f"site-{number:02}"
    Path(f"{name}.toml").write_text(SITE.replace("site-01", name), encoding="utf-8")

# Both kinds of file are checked when they are read, and a plan needs no image.
brats_sites = [medfl.load_site(Path(f"site-{number:02}.toml")) for number in range(1, 5)]
print_plan(medfl.plan_study(medfl.load_study(Path("brats.toml")), brats_sites))

# %% [markdown]
# This is a place to start from, not a tuned recipe. With 90 patients a site, `noise / C` is far
# smaller than above: numbers of patients are what DP training lives on. On the command line:
#
# ```
# medfl check site-01.toml                        # is every case readable, complete, consistent?
# medfl plan brats.toml site-0*.toml              # what would it cost?
# medfl simulate brats.toml site-0*.toml --out runs/brats
# medfl predict BraTS2021/site-01/BraTS2021_00000 \
#     --model runs/brats/checkpoints/final.safetensors --out mask.nii.gz
# ```
#
# ### `open-data` or `hospital`?
#
# | | `purpose = "open-data"` | `purpose = "hospital"` |
# |---|---|---|
# | for | public or synthetic patients, simulation only | patients of your own |
# | ledger | in the run folder, new for each run | in `state`, for as long as patients are used |
# | ε | of this run only | of all runs together, tuning included; never above the budget |
# | scores of held-out patients | may be shared | stay inside |
# | models without noise | allowed | refused |
# | noise from a seed | allowed, for tests | refused |
#
# Choosing a learning rate on patients in ten runs costs them ten times. Tune on open or synthetic
# data as `open-data`, then run once as `hospital`. A site file that asks for both is refused:

# %%
hospital = SITE.replace('"open-data"', '"hospital"')
without = [line for line in hospital.splitlines() if "open data only" not in line]
for text in (hospital, "\n".join(without)):
    Path("hospital.toml").write_text(text, encoding="utf-8")
    try:
        print(f"accepted: a {medfl.load_site(Path('hospital.toml')).purpose}'s file\n")
    except medfl.ConfigError as error:
        print(f"refused: {error}\n")

# %% [markdown]
# The second text left the two lines out. `medfl ledger init` then makes the ledger, once and before
# the first study, and `medfl budget` shows what is left of it.
#
# What ε does not cover: that a site takes part, its declared number of patients, and anything that
# is true of patients in general. A patient who is in two hospitals pays at both. And a model from
# such a run is for research; it is no medical device.
