# %% [markdown]
# # Quickstart: a brain for the asking
#
# **Promise.** In a few minutes, on a laptop without a graphics card and without any data, you ask for a brain by age,
# sex, ventricular volume and brain volume, look at it, and measure whether you got what you asked for.
#
# **Goals.** After this chapter you can
#
# 1. load the small pretrained model that ships with this project;
# 2. state a request in years and millilitres, and draw volumes for it;
# 3. say in which sense two samples with the same noise and different requests are "the same person";
# 4. check a generated volume against its request with a measurement.
#
# The model is a miniature of the latent diffusion model of {cite:t}`pinaya2022`. That model was trained on 31,740 scans
# and makes volumes with voxels of 1 mm. Ours was trained on simulated brains and its voxels are much coarser, but the
# parts are the same, and later chapters build each of them.

# %% [markdown]
# The next cell holds everything that can be set from outside. A run of the whole book fills it in.

# %% tags=["parameters"]
profile: str = "tiny"  # sizes and settings: smoke, tiny, demo or paper
cohort: str = "atlas"  # simulated brains, or the name of a prepared BIDS folder
seed: int = 0  # of the training
runs: str = "runs"  # folder of all runs

# %% [markdown]
# Opening the run tells the notebook where earlier stages have left their results.

# %%
import time

import numpy as np
import pandas as pd

from brainldm_core import figures, pages, widgets
from brainldm_core.runner import finish_notebook
from brainldm_core.samples import measure_all
from brainldm_core.sampling import sample

run = pages.begin(profile, cohort, seed, runs)
pipeline, origin = pages.any_pipeline(run)
pages.say(f"This page draws from {origin}.")

# %% [markdown]
# The model comes with its own description: what it learned from, and the range of each covariate that it has seen.

# %%
pages.pipeline_banner(pipeline)

# %% [markdown]
# Below the table of the run, each row is a covariate with the smallest and largest value in the training cohort. The
# brain volume is **normalised for head size**: it says how large the brain would be in a head of average size. The
# raw volume mostly follows the size of the head, so asking for less of it would ask for a smaller person rather than
# for a shrunken brain.
#
# ## Asking
#
# A request is a row of a table, in physical units. We ask for four people who differ in everything, ordered from a
# younger brain with small ventricles to an older one with large ventricles.

# %%
requests = pd.DataFrame(
    {
        "sex": ["F", "M", "F", "M"],
        "age_years": [50.0, 60.0, 70.0, 78.0],
        "ventricular_volume_ml": [14.0, 25.0, 45.0, 60.0],
        "brain_volume_ml": [1210.0, 1180.0, 1150.0, 1120.0],
    }
)
requests

# %% [markdown]
# Sampling starts from noise. The noise of a sample comes from its id alone, so sample 3 stays sample 3 whatever else is
# drawn beside it, today or in a year. The sampler is DDIM {cite}`song2021`, the subject of chapter 4.

# %% tags=["hide-input"]
start = time.perf_counter()
steps = pipeline.profile.sampling.steps
brains = sample(pipeline, requests, ids=[1, 2, 3, 4], steps=steps)
seconds = time.perf_counter() - start
pages.say(
    f"Four volumes of {' × '.join(map(str, brains.shape[1:]))} voxels in {pages.duration(seconds)}, with {steps} steps."
)

# %% [markdown]
# Here they are, each in three planes.

# %% mystnb={"figure": {"caption": "Four generated brains. Rows: one brain each, with the age, sex and ventricular volume asked for. Columns: an axial, a coronal and a sagittal slice. Radiological convention: R marks the person's right. Grey values run from 0 (black) to 1 (white); each square is a voxel.", "name": "fig-quickstart-brains"}, "image": {"alt": "Four generated brains in axial, coronal and sagittal slices; the dark ventricles in the middle differ in size from row to row."}}
titles = [
    f"{row.age_years:.0f} y, {row.sex}\n{row.ventricular_volume_ml:.0f} ml"
    for row in requests.itertuples()
]
figures.three_planes(brains, titles)

# %% [markdown]
# In {numref}`fig-quickstart-brains`, look at the dark spaces in the middle of each brain: the lateral ventricles, which
# are filled with fluid. They grow with age in all of us, and more in disease.
#
# ## Measuring what came
#
# A picture is not evidence. We measure each volume with the same simple morphometry that is used on real volumes, and
# put what came beside what was asked.

# %%
measured = measure_all(brains, pipeline.profile.grid.affine)
comparison = pd.DataFrame(
    {
        "ventricles asked (ml)": requests["ventricular_volume_ml"],
        "ventricles measured (ml)": measured["measured_lateral_ventricles_ml"].round(1),
        "brain asked (ml)": requests["brain_volume_ml"],
        "brain measured (ml)": measured["measured_brain_volume_ml"].round(0),
    }
)
comparison

# %% [markdown]
# Read in words:

# %% tags=["hide-input"]
error = (
    measured["measured_lateral_ventricles_ml"] - requests["ventricular_volume_ml"]
).abs()
brain_error = (measured["measured_brain_volume_ml"] - requests["brain_volume_ml"]).abs()
pages.say(
    f"Over these {len(error)} brains the measured ventricles differ from the request by {error.mean():.1f} ml on average "
    f"(at most {error.max():.1f} ml), and the measured brain volume by {brain_error.mean():.0f} ml (at most "
    f"{brain_error.max():.0f} ml). Four brains are an illustration; chapter 3 does this with held-out requests."
)

# %% [markdown]
# ## Turning one knob
#
# What does the model do when one covariate changes and the noise stays? In JupyterLab the next cell is an instrument:
# release a slider, and about a second later the brain that you asked for stands beside it. On this page, where no kernel
# answers, one picture stands for it: the ventricular volume grows from left to right, the brain volume shrinks from top
# to bottom.
#
# Before you touch a slider, look at its track. It is blue where the training cohort was and orange beyond it. As soon as
# a handle leaves the blue part, the frame of the picture turns orange too, and a line says what is being extrapolated.
#
# Then try three things. Move the ventricles only, and watch what stays. Press *New noise* and watch what changes now.
# Switch *same noise* off and move a slider again: the request and the person change together, and you can no longer
# tell what either of them did.

# %% mystnb={"figure": {"caption": "One noise, fifteen requests: axial slices through the lateral ventricles. Ventricular volume by column, normalised brain volume by row, age and sex fixed; under each slice the measured ventricles and brain (ml). The column marked * lies outside the training range: the model extrapolates there.", "name": "fig-quickstart-knobs"}, "image": {"alt": "A grid of axial slices of one generated brain; the ventricles widen from left to right and the sulci widen from top to bottom."}}
explorer = widgets.explorer(pipeline)
explorer

# %% [markdown]
# All brains of {numref}`fig-quickstart-knobs` share their noise, and with it whatever the covariates do not decide.
# That is the sense in which they are one person: the request changes, the chance does not.
#
# Read what was measured as well. Along a row the first number should grow as the request does, and the second should
# stay; down a column it is the other way round. Where a number moves that nobody asked to move, one covariate drags
# another along. Chapter 5 measures how much.
#
# A range is that of one covariate. A request can be blue on all sliders and still be like nobody in the cohort: an old
# person's ventricles at a young age, for instance. The sliders do not warn of that.
#
# ## The same from the command line
#
# *Copy as command* gives the line that draws the same brain on a terminal. The number of the person is the seed there.
#
# The command below writes four volumes for one request as compressed NIfTI files in MNI space, each with a sidecar that
# says it is synthetic and how it was made, and a picture of them all.
#
# ```bash
# brainldm sample --age 70 --sex F --ventricles 45ml --brain 1150ml --n 4 --out brains
# ```
#
# ## Checks
#
# The statements of this page that must hold for any model and any machine:

# %%
assert brains.shape == (len(requests), *pipeline.profile.grid.shape)
assert np.isfinite(brains).all() and brains.min() >= 0 and brains.max() <= 1
together = sample(pipeline, requests, ids=[1, 2, 3, 4], steps=5)
alone = sample(pipeline, requests.iloc[[2]], ids=[3], steps=5)
assert np.abs(alone[0] - together[2]).max() < 1 / 255, "samples depend on their company"
assert set(pipeline.ranges) == set(requests.columns)

# %% [markdown]
# ## What we saw
#
# - A trained model, its covariate ranges and its settings travel together in two small files.
# - A request is a row in years and millilitres. Scaling to the model's [0, 1] happens inside.
# - A sample is a function of the model, the request, its id and the sampler.
# - Measuring the samples is the only way to know that a request was met.
#
# ## Exercises
#
# **1 (easy).** Ask for the same person with 15, 30 and 60 ml of ventricles. What else changes in the picture?
#
# ```{dropdown} Solution
# Repeat one row with three ventricular volumes and give all three the same id:
#
#     rows = pd.concat([requests.iloc[[2]]] * 3).assign(ventricular_volume_ml=[15.0, 30.0, 60.0])
#     figures.montage(sample(pipeline, rows, ids=[3, 3, 3]))
#
# The ventricles widen, and the white matter around them gives way. The outline of the head hardly moves, because the
# head's size is not among the covariates.
# ```
#
# **2 (medium).** Leave a covariate out (write `None`). What does the model do?
#
# ```{dropdown} Solution
# With mask channels, as in the profile used here, a missing covariate is marked as missing and the model fills in what
# goes with the others. Draw twenty samples with `ventricular_volume_ml=None` at age 50 and at age 78 and measure them:
# the older group should have larger ventricles on average, because in the training cohort the two go together. The
# `paper` profile has no mask channels and refuses.
# ```
#
# **3 (hard).** Is the error of a sample in this chapter due to the diffusion model, or to the autoencoder that turns
# its latent into voxels, or to the measurement itself? Plan an experiment that tells the three apart.
#
# ```{dropdown} Solution
# Measure real held-out volumes against their labels (the measurement alone), then the same volumes after encoding and
# decoding (measurement and autoencoder), then samples that ask for the same covariates (all three). Chapters 1 to 3 do
# this, one step each, and chapter 3 puts the three correlations beside each other.
# ```

# %% [markdown]
# The last cell hands this page's numbers to the results of the run.

# %%
n = len(brains)
results = {
    "quickstart, four volumes": {"value": round(seconds, 2), "unit": "s", "n": n},
    "quickstart, ventricle error": {
        "value": round(error.mean(), 2),
        "unit": "ml",
        "n": n,
    },
    "quickstart, brain error": {
        "value": round(brain_error.mean(), 1),
        "unit": "ml",
        "n": n,
    },
}
finish_notebook(run, "00_quickstart", results)
