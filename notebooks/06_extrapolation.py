# %% [markdown]
# # Extrapolation: asking for what nobody has seen
#
# **Promise.** You ask for ventricles far larger and brains far smaller than any in the training cohort, down to volumes
# that cannot exist, and measure where the answers stop following.
#
# **Goals.** After this chapter you can
#
# 1. turn the paper's normalised units into millilitres and back;
# 2. say what a network can and cannot know outside its training range;
# 3. tell, from a curve, an answer that extrapolates from one that saturates;
# 4. score a model inside and outside its range, on requests of many people.
#
# This is figure 4 of {cite:t}`pinaya2022`. There, volumes beyond the range of 31,740 people still gave brains with larger
# ventricles or less tissue, and even a negative ventricular volume gave a picture. You need chapter 5 for the requests.

# %% tags=["parameters"]
profile: str = "tiny"  # sizes and settings: smoke, tiny, demo or paper
cohort: str = "atlas"  # simulated brains, or the name of a prepared BIDS folder
seed: int = 0  # of the training
runs: str = "runs"  # folder of all runs

# %% [markdown]
# We open the run and its trained model.

# %%
import numpy as np
import pandas as pd

from brainldm_core import charts, conditioning, figures, interventions, pages
from brainldm_core import scorecard, sweeps, widgets
from brainldm_core.covariates import COLUMNS, encode
from brainldm_core.dataset import load_cohort
from brainldm_core.runner import finish_notebook
from brainldm_core.samples import sample_stage
from brainldm_core.sampling import load_pipeline

run = pages.begin(profile, cohort, seed, runs)
scans = load_cohort(run.stage("cohort"))
train = scans.rows("train")
sample_stage(run)
pipeline = load_pipeline(run.folder)
pages.banner(run, "autoencoder", "diffusion", "samples", subjects=len(train))

# %% tags=["hide-input"]
pages.caution(len(train))

# %% [markdown]
# ## Units: what 1.9 means
#
# The paper states these requests in normalised units: 0 is the smallest value of the training cohort and 1 the largest.
#
# ```{math}
# :label: eq-unit-range
# c = \frac{v - v_{\min}}{v_{\max} - v_{\min}}, \qquad v = v_{\min} + c \, (v_{\max} - v_{\min})
# ```
#
# The ends belong to single persons, so the same $c$ is another volume in another cohort. The table gives both, ours from
# the ranges in the checkpoint, the paper's from those of its cohort.

# %%
PANELS = {
    "ventricular_volume_ml": [1.5, 1.9, -0.5],
    "brain_volume_ml": [-0.1, -0.3, -0.5],
}
sweeps.in_both_units(PANELS, pipeline.ranges).round(1)

# %% tags=["hide-input"]
lowest = sweeps.physical(pipeline.ranges, "ventricular_volume_ml", [-0.5])[0]
pages.say(
    f"Ventricles of -0.5 are {lowest:.0f} ml here. "
    + (
        "No brain has less than nothing: this request means nothing in anatomy."
        if lowest < 0
        else ""
    )
    + " For the network it is a number like any other. "
    + sweeps.departures(pipeline.profile)
)

# %% [markdown]
# The project never clamps such requests. It warns and answers, because clamping would hide what we want to see.
#
# ## What can a network know out there?
#
# The request enters the network as a few numbers that are multiplied by weights (chapter 3). Inside the training range
# the data say what larger numbers should do. Outside nothing does. What happens there is what the layers happen to do
# with larger inputs: if the answer is nearly linear in the request, it goes on for a while; normalisation layers and
# bounded activations bend it. In addition the autoencoder can only decode what resembles its training volumes.
#
# ## Panels and curve from one noise
#
# We ask for eight values of each covariate, from inside the range to far outside it, from one noise and with the medians
# of the cohort for all else. The panels of the paper's figure are among them.

# %%
CURVES = {
    "ventricular_volume_ml": [-0.5, 0, 0.25, 0.5, 0.75, 1, 1.5, 1.9],
    "brain_volume_ml": [-0.5, -0.3, -0.1, 0, 0.25, 0.5, 0.75, 1],
}
base = sweeps.typical_request(train)
requests = pd.concat(
    sweeps.sweep_requests(
        base, column, sweeps.physical(pipeline.ranges, column, values)
    )
    for column, values in CURVES.items()
)
requests["normalised"] = np.concatenate(list(CURVES.values()))
beyond = sweeps.outside(requests, pipeline.ranges)
NAMES = {"ventricular_volume_ml": "ventricles", "brain_volume_ml": "brain"}
RULERS = ("measured_lateral_ventricles_ml", "measured_brain_volume_ml")
PAIRS = dict(zip(NAMES, zip(NAMES, RULERS, strict=True), strict=True))
volumes, answers = sweeps.draw(pipeline, requests, noises=[0], seed=run.seed)

# %% [markdown]
# What the sampler has to say about these requests:

# %% tags=["hide-input"]
pages.say("\n".join(f"- {line}." for line in beyond))

# %% [markdown]
# The panels of figure 4. Above each slice the request, under it the measured volume.

# %% mystnb={"figure": {"caption": "Requests outside the training range, from one noise: ventricular volume of 1.5, 1.9 and -0.5 (top) and brain volume of -0.1, -0.3 and -0.5 (bottom) in normalised units. Above each slice the request in both units, under it the measured volume (ml). Axial slices through the lateral ventricles, R marks the person's right.", "name": "fig-extrapolation"}, "image": {"alt": "Two rows of three axial slices: answers to large, very large and negative ventricular volumes; below, to ever smaller brain volumes."}}
chosen = {}
for column, values in PANELS.items():
    part = answers[answers["moved"] == column]
    places = [part.index[part["normalised"] == value][0] for value in values]
    chosen[column] = part.loc[places]
rows = {}
for column, part in chosen.items():
    slices, above, under = pages.panel_row(volumes, part, PAIRS[column])
    above = [f"{c:g}: {words}" for c, words in zip(PANELS[column], above, strict=True)]
    rows[NAMES[column]] = (slices, above, under)
figures.panels(rows)

# %% [markdown]
# The same requests in numbers:

# %%
table = pd.concat(
    pd.DataFrame(
        {
            "covariate": NAMES[column],
            "normalised": part["normalised"],
            "asked (ml)": part[column],
            "measured (ml)": part[PAIRS[column][1]],
        }
    )
    for column, part in chosen.items()
)
table.round(1).reset_index(drop=True)

# %% [markdown]
# ## Where do the answers stop following?
#
# The figure joins all sixteen answers, with the training range shaded.

# %% mystnb={"figure": {"caption": "Measured against requested volume (ml) from one noise, from inside the training range (shaded) to far outside it. Dashed: what was asked for. Left: ventricles; right: brain volume, normalised for head size.", "name": "fig-beyond-range"}, "image": {"alt": "Two curves of measured against requested volume, with the training range shaded and a dashed line for what was asked."}}
panels = {}
for column, name in NAMES.items():
    part = answers[answers["moved"] == column]
    asked, measured = part[column], part[PAIRS[column][1]]
    panels[f"{name} asked for (ml)"] = (asked, measured, pipeline.ranges[column])
charts.responses(panels, "measured (ml)")

# %% [markdown]
# To say it in numbers, we compare the slope of the curve inside the range with its slope beyond either end, the end
# itself included.

# %%
slopes = {}
for column, name in NAMES.items():
    part = answers[answers["moved"] == column]
    place = part["normalised"]
    sides = {
        "below": place <= 0,
        "inside": (place >= 0) & (place <= 1),
        "above": place >= 1,
    }
    slopes[name] = {
        side: conditioning.slope(*(part.loc[rows, name] for name in PAIRS[column]))
        for side, rows in sides.items()
    }
pd.DataFrame(slopes).T.round(2)

# %% tags=["hide-input"]
pages.say(
    "\n\n".join(
        interventions.beyond_in_words(name, row) for name, row in slopes.items()
    )
)

# %% [markdown]
# One noise and one median person stand behind this curve; another noise moves it up or down. And a measured volume says
# nothing of how real a brain looks. Look at the panels again: where the curve leaves the dashed line, what has the model
# done instead? Is the outline still a head, and is the tissue around the ventricles still tissue?
#
# The paper shows its panels without measurements, so there is no number of its to set beside these.
#
# ## By hand, and both at once
#
# So far one covariate left its range at a time. In JupyterLab the sliders of the next cell reach all of the paper's
# panels, whose values in normalised units stand as a second row of marks under them. The track is blue inside the
# training range and orange beyond, and so is the frame of the picture. On this page a grid stands there instead, in which
# both covariates leave their range together.
#
# Start inside and walk out slowly. The warning comes with the first step beyond the blue; the picture need not change at
# that step at all. For the network the end of the range is no border.
#
# Then go on until something breaks, and say what: the measured volume, the outline of the head, or the tissue?

# %% mystnb={"figure": {"caption": "Requests in which ventricular volume (columns) and brain volume (rows) leave the training range together, from one noise with the age fixed: the paper's panels and the middle of the range. Volumes marked * lie outside the training range; under each slice the measured ventricles and brain (ml). Axial slices through the lateral ventricles, R marks the person's right.", "name": "fig-both-beyond"}, "image": {"alt": "Four rows of four axial slices; from left to right the requested ventricles grow from a negative volume, from top to bottom the requested brain shrinks."}}
widgets.explorer(pipeline, run.folder, PANELS)

# %% [markdown]
# In {numref}`fig-both-beyond` only one slice was asked for inside both ranges. Compare the corners with the edges: if each
# covariate did its work alone, a corner would show what its row and its column show.
#
# Below 0 ml the request has no meaning, but the answer is still a picture with a measured volume that is not negative.
# The model does not refuse. In the live cell the command that you copy says `--ventricles=-32ml` or the like, and
# `brainldm sample` warns and answers as well.
#
# ## Inside and outside, over many people
#
# To go beyond one median person we take held-out rows, twelve for each covariate. Each keeps its other covariates and the
# noise of its sample in chapter 3; one covariate is pushed out of the range, to values spread from just beyond the end to
# the paper's furthest panel. The samples that chapter 3 drew for held-out rows as they are stand beside them.

# %%
PUSHED = {"ventricular_volume_ml": (1.05, 1.9), "brain_volume_ml": (-0.05, -0.5)}
test = scans.rows("test").head(run.profile.sampling.evaluation_samples)
people = pd.concat(
    sweeps.pushed(
        test,
        column,
        sweeps.physical(pipeline.ranges, column, np.linspace(*ends, 12)),
    )
    for column, ends in PUSHED.items()
)
places = people.index.tolist()  # of the rows, which are the ids of their samples
_, far = sweeps.draw(pipeline, people, places, seed=run.seed, crossed=False)

# %% [markdown]
# A row counts as outside when this covariate was asked for outside the training range. Bias is measured less requested.

# %%
_, near = pages.samples(run, "ddim")
regions, names = {}, {"ventricles": "ventricular_volume_ml", "brain": "brain_volume_ml"}
for quantity, column in names.items():
    both = pd.concat([near, far[far["moved"] == column]], ignore_index=True)
    regions[quantity] = conditioning.by_region(both, pipeline.ranges)[quantity]
    regions[quantity].pop("all", None)
scorecard.scorecard(regions, dict.fromkeys(regions, "ml"))

# %% tags=["hide-input"]
pages.say(
    "\n\n".join(
        interventions.regions_in_words(quantity, found)
        for quantity, found in regions.items()
    )
)

# %% [markdown]
# Compare slopes before errors: with a slope other than 1 the bias drifts along the range, so that a region can have the
# smaller error because two biases cancel there. Both regions come from one cohort's people and noises, so their
# difference is not that of two cohorts. The ruler is tried on nobody outside the range either: part of what it misses
# there may be its own.
#
# ## Checks

# %%
for column, values in PANELS.items():
    vector = encode(chosen[column], pipeline.ranges)[0][:, COLUMNS.index(column)]
    known = np.isfinite(chosen[column][column].to_numpy(float))
    assert np.allclose(vector[known], np.array(values)[known], atol=1e-4), "units"
assert list(answers["normalised"]) == [c for curve in CURVES.values() for c in curve]
assert len(beyond) >= 2, "requests outside the range must be noticed"
assert len(far) == len(people) and (far["noise"].to_numpy() == places).all()
assert volumes.min() >= 0 and volumes.max() <= 1 and np.isfinite(volumes).all()
inside = sweeps.outside(requests[requests["normalised"].between(0, 1)], pipeline.ranges)
assert inside == [], "the ends of the range are inside it"

# %% [markdown]
# ## What we saw
#
# - A normalised unit is a statement about a cohort. Millilitres are a statement about a brain.
# - Nothing in training says what a request outside the range should do; the layers decide.
# - Extrapolation is a slope, not a picture: it goes on, falls off or turns round.
# - A scorecard without its range says nothing of requests outside it; n, bias and slope differ there.
# - A model answers impossible requests as readily as others, and says nothing of it. Its user has to.
#
# ## Exercises
#
# **1 (easy).** Which normalised ventricular volume is 100 ml in this cohort, and which in the paper's?
#
# ```{dropdown} Solution
# By {eq}`eq-unit-range`, `(100 - low) / (high - low)` with the ends in `pipeline.ranges["ventricular_volume_ml"]` here,
# and $(100 - 7.0) / (171.4 - 7.0) = 0.57$ in the paper's.
# ```
#
# **2 (medium).** Draw the curve of {numref}`fig-beyond-range` from four noises. Does the answer beyond the range scatter
# more between noises than inside it?
#
# ```{dropdown} Solution
# `sweeps.draw(pipeline, requests, noises=[0, 1, 2, 3])` and a standard deviation for each request, with
# `answers.groupby(["moved", "normalised"])`. Divide by the mean, as a larger volume scatters more for the same share.
# ```
#
# **3 (hard).** Is it the diffusion model or the autoencoder that limits large ventricles? Design a test that needs no
# training.
#
# ```{dropdown} Solution
# Give the autoencoder a brain whose ventricles are larger than any it has seen: warp a held-out volume, or simulate one
# with `simulate` for a request beyond the range, reconstruct it and measure both. If the reconstruction keeps the
# volume, the decoder can show it and the diffusion model does not ask for it; if it shrinks, the decoder is the limit.
# ```

# %% [markdown]
# The last cell hands this page's numbers to the results of the run.

# %%
results = {}
for column, part in chosen.items():
    name, measured = NAMES[column], PAIRS[column][1]
    for value, asked, found in part[["normalised", column, measured]].itertuples(
        index=False
    ):
        note = f"asked {asked:.0f} ml"
        row = {"value": round(found, 1), "unit": "ml", "n": 1, "note": note}
        results[f"{name} at {value:g}, measured"] = row
    for side, value in slopes[name].items():
        results[f"{name}, slope {side} the range"] = {"value": round(value, 3)}
for quantity, found in regions.items():
    for region, row in found.items():
        results |= conditioning.result_rows(f"{quantity}_{region}_range", row, "ml")
finish_notebook(run, "06_extrapolation", pages.finite(results))
