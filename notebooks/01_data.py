# %% [markdown]
# # The data: scans, covariates and a common space
#
# **Promise.** You meet the cohort that everything else learns from: who is in it, what its volumes look like, in which
# space they lie, and how well a simple measurement finds the volumes that the table states.
#
# **Goals.** After this chapter you can
#
# 1. say where a cohort comes from and what its licence allows;
# 2. explain each of the four covariates and why brain volume is normalised for head size;
# 3. turn the index of a voxel into a place in MNI space;
# 4. judge the measurement that later chapters rely on, before anything is generated.
#
# {cite:t}`pinaya2022` trained on 31,740 scans of UK Biobank {cite}`alfaro2018`, people of 44 to 82 years, registered rigidly
# to MNI space at 1 mm. Those scans cannot be handed out. This book therefore runs on simulated brains by default, and on
# any BIDS folder {cite}`gorgolewski2016` of T1-weighted scans that you have.

# %% tags=["parameters"]
profile: str = "tiny"  # sizes and settings: smoke, tiny, demo or paper
cohort: str = "atlas"  # simulated brains, or the name of a prepared BIDS folder
seed: int = 0  # of the training
runs: str = "runs"  # folder of all runs

# %% [markdown]
# A simulated cohort is made here if it does not exist yet. Your own scans are prepared beforehand, by
# `brainldm prepare bids FOLDER` or by `make reproduce BIDS=FOLDER`.

# %%
import numpy as np
import pandas as pd

from brainldm_core import charts, figures, pages, simulate, sweeps
from brainldm_core.conditioning import agreement
from brainldm_core.covariates import COLUMNS, REFERENCE_ICV_ML, encode, fit_ranges
from brainldm_core.dataset import LABELS, SPLITS, load_cohort
from brainldm_core.morphometry import segment
from brainldm_core.runner import finish_notebook
from brainldm_core.simulate_run import simulate_cohort

run = pages.begin(profile, cohort, seed, runs)
if run.cohort == "atlas":
    simulate_cohort(run)
scans = load_cohort(run.stage("cohort"))

# %%
pages.banner(run, "cohort", subjects=len(scans.rows("train")))

# %% tags=["hide-input"]
pages.caution(len(scans.rows("train")))

# %% [markdown]
# ## Where the scans come from
#
# Each data set has a manifest: its source, version, licence, and how its columns become ours.

# %%
pages.manifest(run)

# %% [markdown]
# The simulated cohort is made by warping one anatomy, the MNI152 template {cite}`fonov2011`, into many people. A random
# smooth deformation gives each an individual shape, one flow of tissue enlarges the ventricles, another widens the sulci,
# and how much of each depends on age and sex as in 291 real people. Afterwards the volumes are *measured* on the warped
# tissue maps, and the measured values go into the table.
#
# ## Who is in it
#
# One row is one scan. Participants, never single scans, are divided into training, validation and test.

# %%
shown = ["participant_id", "split", "sex", "age_years"]
scans.table[[*shown, *COLUMNS[2:]]].head(6)

# %% tags=["hide-input"]
counts = {split: len(scans.rows(split)) for split in SPLITS}
people = scans.table["participant_id"].nunique()
age, sex = scans.table["age_years"].astype(float), scans.table["sex"]
pages.say(
    f"{len(scans.table)} scans of {people} people: "
    + ", ".join(f"{count} {name}" for name, count in counts.items())
    + ". "
    f"Age {age.mean():.1f} ± {age.std():.1f} years ({age.min():.0f} to {age.max():.0f}); {(sex == 'M').mean():.0%} of the scans "
    "are of men. (Paper: 63.6 ± 7.5 years, 44 to 82, 47 % men.)"
)

# %% [markdown]
# The three splits should look alike, or the test would ask for something that training has never seen.

# %% mystnb={"figure": {"caption": "Covariates by split (densities): age in years, volume of the lateral ventricles in ml, and brain volume normalised for head size in ml.", "name": "fig-covariates"}, "image": {"alt": "Three panels of outlined histograms, one outline for each of the training, validation and test split."}}
UNITS = {
    "age_years": "age (years)",
    "ventricular_volume_ml": "lateral ventricles (ml)",
    "brain_volume_ml": "brain, normalised (ml)",
}
charts.distributions(scans.table, UNITS)

# %% [markdown]
# ## The four covariates
#
# Sex and age need no explanation. The **ventricular volume** is that of the lateral ventricles with their inferior horns,
# in millilitres of the person's own size. The **brain volume** $b$ is normalised for head size,
#
# ```{math}
# :label: eq-normalised
# b = V_{\text{brain}} \cdot \frac{V_{\text{ref}}}{V_{\text{intracranial}}} ,
# ```
#
# with a reference head that the manifest states (1,369 ml for simulated cohorts). Without {eq}`eq-normalised` the volume of
# the brain would tell mostly how large somebody's head is: in the 291 people the two correlate with r = 0.97. Asking a
# model for less of it would give smaller heads, not shrunken brains.
#
# Inside the model each covariate is scaled by the range of the training split,
#
# ```{math}
# :label: eq-minmax
# c = \frac{\text{value} - \min_{\text{train}}}{\max_{\text{train}} - \min_{\text{train}}} ,
# ```
#
# so most requests lie in [0, 1]. Values outside are passed on as they are: that is how the paper asks for brains beyond
# its data. The vector exists inside the model only; the ranges travel in the checkpoint.

# %% tags=["hide-input"]
ranges = fit_ranges(scans.rows("train"))
vectors, _ = encode(scans.rows("test").head(3), ranges)
pages.say(
    "| covariate | training range |\n|:--|:--|\n"
    + "| `sex` | F is 0, M is 1 |\n"
    + "\n".join(
        f"| `{column}` | {ranges[column][0]:.1f} to {ranges[column][1]:.1f} |"
        for column in COLUMNS[1:]
    )
    + f"\n\nThe first test row becomes the vector ({', '.join(f'{value:.2f}' for value in vectors[0])})."
)

# %% [markdown]
# Age and ventricles go together in people. In this cohort:

# %% tags=["hide-input"]
known = (
    scans.table[["age_years", "ventricular_volume_ml", "brain_volume_ml"]]
    .astype(float)
    .dropna()
)
aging = {
    column: agreement(known["age_years"], known[column]) for column in known.columns[1:]
}
pages.say(
    f"Age and ventricles: {aging['ventricular_volume_ml'].note()}. Age and normalised brain volume: "
    f"{aging['brain_volume_ml'].note()}. In the 291 real people: 0.48 for ventricles, -0.60 for the brain's share of the head."
)

# %% [markdown]
# Do they go together as in people? The next figure lays the cohort over 291 volunteers of the IXI study {cite}`ixi`, 40 to 86
# years old: for each sex the line is the average at an age, and two thirds of the people lie in the band around it.

# %% mystnb={"figure": {"caption": "Lateral ventricles (left; note the logarithmic scale) and brain volume normalised for head size (right), by age. Points: scans of this cohort. Lines and bands: regression on age and sex in 291 people of IXI, and one residual standard deviation to either side.", "name": "fig-people"}, "image": {"alt": "Two scatter plots against age. Ventricles rise and brain volume falls with age; most points lie in bands drawn for women and men."}}
charts.against_people(scans.table)

# %% [markdown]
# Points that scatter about the bands as far below as above mean that a model trained here meets the ages, sexes and volumes
# that it would meet among healthy adults. A simulated cohort is drawn from these very lines; scans of patients, or a segmentation with
# another idea of where a ventricle ends, would lie off them.
#
# ## What the volumes look like
#
# Scans of the training split, ordered by the volume of their ventricles:

# %% mystnb={"figure": {"caption": "Scans of the training split ordered by ventricular volume (ml, above each): axial slices through the lateral ventricles. R marks the person's right. Grey values are scaled to [0, 1]; each square is a voxel.", "name": "fig-cohort"}, "image": {"alt": "A grid of axial brain slices; the ventricles in the middle grow from the first to the last."}}
rows = scans.rows("train")
volumes = scans.volumes("train")[:, 0].numpy()
sizes = rows["ventricular_volume_ml"].astype(float).fillna(0).to_numpy()
order = np.argsort(sizes)[
    np.linspace(0, len(sizes) - 1, min(24, len(sizes))).round().astype(int)
]
figures.montage(volumes[order], [f"{value:.0f} ml" for value in sizes[order]])

# %% [markdown]
# And the two ends of the row in three planes:

# %% mystnb={"figure": {"caption": "The scan with the smallest and the one with the largest ventricles of the training split, in an axial, a coronal and a sagittal slice. R, L: right and left; A, P: front and back.", "name": "fig-small-large"}, "image": {"alt": "Two brains in three planes; the ventricles of the second are several times larger."}}
ends = order[[0, -1]]
figures.three_planes(
    volumes[ends],
    [
        f"{rows['age_years'].astype(float).iloc[place]:.0f} y, {sizes[place]:.0f} ml"
        for place in ends
    ],
)

# %% [markdown]
# ## One person, one covariate at a time
#
# People differ in everything at once. The simulator can do what no scanner can: keep a person, the folds, the noise and the
# position, and change one covariate alone. That is also the picture of what we shall ask of the model in chapter 5, with
# the difference that here the answer is known.

# %%
SWEPT = {
    "ventricles": ("ventricular_volume_ml", [10, 20, 40, 80]),
    "brain": ("brain_volume_ml", [1020, 1100, 1180, 1260]),
    "head": ("intracranial_volume_ml", [1150, 1300, 1450, 1600]),
    "age": ("age_years", [45, 57, 69, 81]),
}
base = sweeps.typical_request(rows) | {"intracranial_volume_ml": REFERENCE_ICV_ML}
asked = pd.concat(sweeps.sweep_requests(base, *swept) for swept in SWEPT.values())
simulated, answers = simulate.simulate_requests(asked, run.profile.grid)

# %% [markdown]
# Each row below is one person with one covariate changed. Look at the size of the ventricles, at the width of the sulci, at the
# size of the head, and last at the difference between grey and white.

# %% mystnb={"figure": {"caption": "One simulated person with one covariate changed at a time: the volume of the ventricles, that of the brain (normalised for head size), that of the head, and age. Above each axial slice what was asked for, under it what the tissue maps hold. R marks the person's right.", "name": "fig-one-covariate"}, "image": {"alt": "Four rows of axial brain slices. From left to right the ventricles grow, the sulci narrow, the head grows, and in the last row hardly anything changes."}}
parts = {
    name: answers[answers["moved"] == column] for name, (column, _) in SWEPT.items()
}
shown = {
    name: pages.panel_row(simulated, part, (SWEPT[name][0], f"measured_{SWEPT[name][0]}"))
    for name, part in parts.items()
    if name != "age"
}
ages = parts["age"]
shown["age"] = simulated[ages.index], [f"{age:.0f} years" for age in ages["age_years"]], [""] * 4
figures.panels(shown)

# %% [markdown]
# Larger ventricles push white matter aside and leave the surface alone. Less brain shows at the surface: sulci and fissures
# widen. A larger head is the same brain enlarged, which is why the brain's volume has to be normalised. Age alone changes
# nothing but the contrast: cortex and white matter grow a little more alike, as they do in people {cite}`salat2009`. By eye this is
# hardly seen; chapter 5 asks whether a network sees it.
#
# ## One space for all
#
# A volume is an array; an affine matrix $A$ says where its voxels lie in the head. For voxel $(i, j, k)$,
#
# ```{math}
# :label: eq-affine
# \begin{pmatrix} x \\ y \\ z \\ 1 \end{pmatrix} = A \begin{pmatrix} i \\ j \\ k \\ 1 \end{pmatrix}
# \qquad \text{(mm; } x \text{ to the right, } y \text{ to the front, } z \text{ up)}
# ```
#
# The origin of MNI space lies near the anterior commissure, a small bundle of fibres in the middle of the brain. All
# volumes of a cohort share one matrix:

# %%
scans.affine

# %% [markdown]
# Registration is **rigid**: heads are turned and moved, not stretched. Sizes are information and must survive.

# %% mystnb={"figure": {"caption": "Scans in MNI space: an axial slice above a coronal one, with coordinates in mm and the outline of the MNI152 brain (blue). The template is larger than most heads, and heads keep their size; what must agree is position and tilt. Radiological: x falls from left to right.", "name": "fig-mni"}, "image": {"alt": "Axial and coronal slices of several brains with a blue outline of the template around them and axes in millimetres."}}
every = np.concatenate(
    [scans.volumes(split)[:, 0].numpy() for split in SPLITS if counts[split]]
)
who = [name for split in SPLITS for name in scans.rows(split)["participant_id"]]
chosen = np.linspace(0, len(every) - 1, min(10, len(every))).round().astype(int)
figures.in_mni(every[chosen], scans.affine, [who[place] for place in chosen])

# %% tags=["hide-input"]
brain = every[chosen] > 0.2
middle = np.array(
    [
        scans.affine[:3, :3] @ np.argwhere(mask).mean(0) + scans.affine[:3, 3]
        for mask in brain
    ]
)
x, y, z = middle.mean(0).round() + 0.0  # no minus in front of a zero
pages.say(
    f"The centres of gravity of these {len(middle)} brains lie at x = {x:.0f}, y = {y:.0f}, z = {z:.0f} mm on average, and "
    f"scatter by {middle.std(0).max():.1f} mm at most along an axis."
)

# %% [markdown]
# ## Brain only
#
# The paper's volumes show whole heads. Here they may not: a simulated brain has neither skull nor scalp, and neither has a
# skull-stripped scan. Everything outside the brain is zero, which makes the task easier, and which makes values such as
# the signal-to-noise ratio of whole heads not comparable.

# %%
background = float((every == 0).mean())
pages.say(
    f"In this cohort {background:.0%} of all voxels are exactly zero: "
    + (
        "the volumes show brains only."
        if background > 0.3
        else "the volumes show more than the brain."
    )
)

# %% [markdown]
# ## Measuring what is there
#
# Later chapters measure generated volumes. A ruler has to be checked first, on volumes whose truth is known. For simulated
# scans the truth is known exactly, from the warped tissue maps. For real scans it is what their table states, measured by
# other means.
#
# The ruler works on grey values alone. It takes the level of white matter as its unit and estimates the levels of cortex
# and fluid. From the template it knows roughly where to look: fluid near the middle is ventricle, fluid at the surface is
# not. A voxel that is half fluid counts half.

# %% mystnb={"figure": {"caption": "A scan of the test split, its labels where the cohort has them, and what the ruler makes of the volume alone: cerebrospinal fluid, grey matter, white matter and lateral ventricles.", "name": "fig-labels"}, "image": {"alt": "Three slices of a brain above the same slices coloured by tissue."}}
test = scans.volumes("test")[0, 0].numpy()
maps = {"labels": scans.labels("test")[0]} if run.cohort == "atlas" else {}
maps["ruler"] = segment(test, scans.affine)
figures.label_overlay(test, maps, LABELS)

# %% [markdown]
# It would do the same for a generated volume. We hold it against the table for every scan outside the training split, or
# for all scans when there are few.

# %%
splits = SPLITS[1:] if counts["train"] >= pages.FEW_SCANS else SPLITS
found, table = pages.measured(scans, splits)
stated, seen = (
    table["ventricular_volume_ml"],
    found["measured_lateral_ventricles_ml"],
)
stated_brain, seen_brain = (
    table["brain_volume_ml"],
    found["measured_brain_volume_ml"],
)
shared = table.get("anatomy")  # rows warped from one person are not independent
ventricles, brains = (
    agreement(*pair, groups=shared)
    for pair in ((stated, seen), (stated_brain, seen_brain))
)

# %% [markdown]
# A perfect ruler would put every point on the dashed line.

# %% mystnb={"figure": {"caption": "The ruler of this book held against the table: volumes of the lateral ventricles (left) and of the brain, normalised for head size (right), in ml. Dashed: identity; solid: least squares; titles: Pearson's r with 95 % bootstrap interval.", "name": "fig-ruler"}, "image": {"alt": "Two scatter plots of measured against stated volume with the line of identity."}}
panels = {
    "lateral ventricles (ml)": (stated, seen, ventricles.note()),
    "brain, normalised (ml)": (stated_brain, seen_brain, brains.note()),
}
charts.two_scatters(panels, "stated in the table", "measured on the volume")

# %% tags=["hide-input"]
pages.say(
    f"Ventricles: {ventricles.note()}; the ruler reads {abs(ventricles.bias):.1f} ml too {'much' if ventricles.bias > 0 else 'little'} "
    f"on average and misses by {ventricles.mae:.1f} ml. Brain: {brains.note()}; {abs(brains.bias):.0f} ml too "
    f"{'much' if brains.bias > 0 else 'little'}, misses by {brains.mae:.0f} ml."
)

# %% [markdown]
# A constant bias does not hurt a correlation, and later chapters use the same ruler on both sides of each comparison. What
# it cannot see, it cannot see in samples either: keep the scatter of {numref}`fig-ruler` in mind.
#
# ## Checks

# %%
assert sum(counts.values()) == len(scans.table) and min(counts.values()) >= 1
owners = [set(scans.rows(split)["participant_id"]) for split in SPLITS]
assert sum(map(len, owners)) == people, "a person is in two splits"
assert (
    every.shape[1:] == run.profile.grid.shape and every.min() >= 0 and every.max() <= 1
)
assert np.allclose(scans.affine, run.profile.grid.affine)
for column, _ in list(SWEPT.values())[:3]:
    part = answers[answers["moved"] == column]
    assert part[f"measured_{column}"].is_monotonic_increasing, column
assert np.abs(middle.mean(0) - [0, -18, 8]).max() < 25, (
    "not where MNI space has its brains"
)
vectors, _ = encode(scans.rows("train"), ranges)
assert vectors.min() >= 0 and vectors.max() <= 1
assert pages.meets(run, "ruler_ventricles_r", ventricles.r), (
    "the ruler misses the ventricles"
)

# %% [markdown]
# ## What we saw
#
# - A cohort is volumes on one grid in MNI space and a table in physical units, with its terms in a manifest.
# - Brain volume is stated for a head of reference size, so that it speaks of the brain and not of the head.
# - Splits are by person.
# - The ruler has been held against volumes whose truth is known, and its errors have been seen.
#
# ## Exercises
#
# **1 (easy).** Which voxel contains the origin of MNI space?
#
# ```{dropdown} Solution
# Invert {eq}`eq-affine`: `np.linalg.solve(scans.affine, [0, 0, 0, 1])[:3]`, and round.
# ```
#
# **2 (medium).** Some people have been scanned twice. What would go wrong if scans instead of people were divided into
# splits?
#
# ```{dropdown} Solution
# The test split would hold second scans of people whose first scan was trained on. A model that had memorised them would
# look as if it had understood. The check above on `owners` would fail.
# ```
#
# **3 (hard).** The table's volumes of a simulated cohort are measured at twice the resolution of the volumes. Why does the
# ruler, working on coarse voxels, scatter? Where would you expect its errors to be largest, relative to the truth?
#
# ```{dropdown} Solution
# A coarse voxel at the wall of a ventricle holds part fluid, part tissue, and its grey value is a mixture. The number of
# such voxels grows with the surface, so thin, small ventricles suffer most: plot
# `found["measured_lateral_ventricles_ml"] / table["ventricular_volume_ml"]` against the truth.
# ```

# %% [markdown]
# The last cell hands this page's numbers to the results of the run.

# %%
error = {"value": round(ventricles.mae, 2), "unit": "ml", "n": ventricles.n}
results = {
    "scans": {"value": len(scans.table)},
    "training scans": {"value": counts["train"]},
    "ruler, ventricles": ventricles.result(**pages.expected(run, "ruler_ventricles_r")),
    "ruler, ventricles, mean absolute error": error,
    "ruler, brain": brains.result(),
}
finish_notebook(run, "01_data", pages.finite(results))
