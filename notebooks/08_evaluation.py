# %% [markdown]
# # Evaluation: how real, how varied
#
# **Promise.** You put every model of this book into one table beside real volumes, with intervals and floors, and then
# answer the five questions of the paper from the numbers of this run.
#
# **Goals.** After this chapter you can
#
# 1. say what FID, KID, MS-SSIM and 4-G-R-SSIM measure, and what each of them cannot see;
# 2. explain why a FID without its n, its extractor and its floor means nothing;
# 3. tell realism from variety by precision, recall, density and coverage;
# 4. read a difference between two models with its uncertainty.
#
# This is table 1 of {cite:t}`pinaya2022`. You need chapter 3 for the diffusion model and chapter 7 for the baselines.

# %% tags=["parameters"]
profile: str = "tiny"  # sizes and settings: smoke, tiny, demo or paper
cohort: str = "atlas"  # simulated brains, or the name of a prepared BIDS folder
seed: int = 0  # of the training
runs: str = "runs"  # folder of all runs

# %% [markdown]
# The metrics live in `metrics` and `similarity`, the networks that turn volumes into features in `features`, the rows of the
# table in `evaluation`.

# %%
import numpy as np
import pandas as pd

from brainldm_core import answers, charts, comparison, features, pages
from brainldm_core.baselines import train_baselines
from brainldm_core.dataset import load_cohort
from brainldm_core.metrics import frechet_distance, ms_ssim_scales
from brainldm_core.runner import finish_notebook
from brainldm_core.samples import sample_stage

# %% [markdown]
# Nothing is trained here.

# %%
run = pages.begin(profile, cohort, seed, runs)
sample_stage(run)
train_baselines(run)
train = load_cohort(run.stage("cohort")).rows("train")
pages.banner(run, "diffusion", "baselines", "samples", subjects=len(train))

# %% tags=["hide-input"]
pages.caution(len(train))

# %% [markdown]
# ## Distances between sets: FID and KID
#
# Nobody can say of a single generated brain how wrong it is, since no real one belongs to it. But a *set* of generated
# brains can be compared with a set of real ones. A network that was trained for something else turns each volume into a
# vector of features. The **Fréchet distance** (FID, {cite:t}`heusel2017`) fits a Gaussian to the vectors of either set and
# compares means $\mu$ and covariances $\Sigma$:
#
# ```{math}
# :label: eq-fid
# \mathrm{FID} = \lVert \mu_r - \mu_g \rVert^2 + \mathrm{tr}\!\left( \Sigma_r + \Sigma_g - 2\, (\Sigma_r \Sigma_g)^{1/2} \right)
# ```
#
# Three things belong to every FID. The **extractor**, because another network gives other numbers. The **n**, because with
# fewer volumes than features a covariance is badly known and the distance comes out too large. And the **floor**: the
# distance between real volumes and other real volumes at the same n. No model can be expected below it.
#
# The **kernel distance** (KID, {cite:t}`binkowski2018`) compares the same features without Gaussians and without that
# bias: it is zero on average for two sets of one kind, whatever the n, and may therefore be below zero. The **maximum mean
# discrepancy** (MMD, {cite:t}`gretton2012`) does the same with a Gaussian kernel. Its width is the median distance of two
# real volumes, one for all rows.

# %% tags=["hide-input"]
extractor = features.default_extractor()
known = (
    "This is the extractor of the paper."
    if extractor.comparable
    else "It is a random network that needs no file. MedicalNet, the extractor of the paper, is used when its weights lie "
    "in the data folder; with other features the values are other values, also in size."
)
pages.say(f"Extractor of this page: **{extractor.note}**. {known}")

# %% [markdown]
# ## Likeness within a set: MS-SSIM and 4-G-R-SSIM
#
# Variety is measured inside one set: how alike are two of its volumes? MS-SSIM {cite}`wang2003` compares local means,
# contrasts and structures at several resolutions; 4-G-R-SSIM {cite}`libovik2010` does so for gradients, and weighs
# preserved edges, changed edges, smooth parts and texture alike. Both are 1 for identical volumes. Both are averaged over
# random pairs, and the goal is not a low value but that of the **real** volumes: higher is mode collapse (chapter 7), lower
# may be noise.

# %% tags=["hide-input"]
pages.say(
    f"A grid of {' × '.join(map(str, run.profile.grid.shape))} voxels allows {ms_ssim_scales(run.profile.grid.shape)} of "
    "the five scales of MS-SSIM. The paper's has room for all five, so even its real volumes have another value than ours."
)

# %% [markdown]
# ## Table 1
#
# Every row is compared with the same reference, the held-out volumes. The row of real volumes shows *other* people, from
# the training split; its distances are the floor. The autoencoder's row has the held-out volumes themselves after one pass
# through the latents: what no diffusion model in these latents can undo. It shows the very people of the reference, which
# flatters it. All volumes are kept in 256 grey values, so that rounding tells nobody apart.
#
# Sampling with all steps takes long, so that row has fewer volumes: its own n, and its own floor.

# %%
volumes = comparison.volumes_of(run)
table = comparison.table_1(run, volumes)
comparison.beside_paper(run, table)

# %% [markdown]
# The numbers in brackets are 95 % intervals: of the distances from random halves of both sets, of the similarities from
# leaving out one volume at a time. They hold for this one training; another training seed adds to them.
#
# The same in a picture. Real volumes are the dashed line in each panel.

# %% mystnb={"figure": {"caption": "Table 1 of this run: FID, MS-SSIM and 4-G-R-SSIM of each model with 95 % intervals; dashed: real volumes of other people. FID: the lower, the nearer to the held-out volumes. The similarities: the nearer to the line, the more a model's samples vary as people do.", "name": "fig-table-1"}, "image": {"alt": "Three panels of points with intervals, one row a model, each with a dashed line at the value of real volumes."}}
panels = {
    title: (comparison.intervals(run, table, metric), table.loc["real", metric])
    for metric, title in comparison.METRICS.items()
}
charts.dots(panels, "real volumes of other people")

# %% tags=["hide-input"]
names = comparison.model_names(run)
compared = table.loc[["lsgan", "vaegan", "ldm_ddim50"]].sort_values("fid")
order = [names[key] for key in compared.index]
apart = answers.nearer(table.loc["real"], table.loc["ldm_ddim50"], "fid")
pages.say(
    f"From the smallest FID to the largest, at one n: {', '.join(order)}. "
    + {
        True: "Real volumes of other people are nearer to the held-out ones than the samples of the LDM are.",
        False: "The samples of the LDM are nearer to the held-out volumes than real volumes of other people are.",
        None: "The intervals of the LDM and of real volumes overlap, or are unknown: no difference is shown, nor its absence.",
    }[apart]
)

# %% [markdown]
# KID and MMD, on the same features:

# %%
kernels = {
    names[key]: {
        "KID": comparison.with_interval(row, "kid"),
        "MMD": comparison.with_interval(row, "mmd"),
        "n": row["n"],
        "reference": row["n_reference"],
    }
    for key, row in table.iterrows()
}
pd.DataFrame.from_dict(kernels, orient="index")

# %% [markdown]
# ## Realism and variety, apart
#
# FID mixes two failures: volumes that are not real enough, and real-looking ones that are all alike. Four numbers take them
# apart {cite}`kynkaanniemi2019,naeem2020`. Around each real volume lies a ball that reaches to its $k$-th neighbour in
# feature space. **Precision** is the share of samples in some ball; **density** counts in how many, and forgives outliers.
# **Coverage** is the share of balls in which a sample lies. **Recall** turns the roles: the share of real volumes in the
# balls of samples.

# %%
four = table[list(comparison.NEIGHBOURS)].astype(float)
four.insert(0, "n", table["n"])
four.insert(1, "k", table["k"])
four.rename(index=names).round(2)

# %% [markdown]
# Precision and density speak of realism, recall and coverage of variety. Read them beside the row of real volumes, which
# need not reach 1 either:

# %% mystnb={"figure": {"caption": "Precision, density, recall and coverage of each model in feature space; dashed: real volumes of other people at the common n.", "name": "fig-precision-recall"}, "image": {"alt": "Four panels of points, one row a model, each with a dashed line at the value of real volumes."}}
panels = {}
for name in ("precision", "density", "recall", "coverage"):
    models = four[name].drop("real").rename(names)
    values = {model: (value, np.nan, np.nan) for model, value in models.items()}
    panels[name] = (values, four.loc["real", name])
charts.dots(panels, "real volumes of other people", columns=4)

# %% [markdown]
# ## The paper's five questions
#
# The paper sets out to answer five questions. Here is what this run has to say to each; every number is of this run unless
# it is called the paper's.

# %% tags=["hide-input"]
pages.say(answers.answers(run, table))

# %% [markdown]
# An overlap of intervals is not a proof of equality: "as good as" would need a margin set beforehand and at least 256 pairs.
#
# All numbers of the paper stand beside those of this run on the {doc}`scoreboard <../book/scoreboard>`, with the reason
# where the two must not be compared.
#
# ## Checks

# %%
common = int(table.loc["real", "n"])
assert (table.drop(index="ldm_1000", errors="ignore")["n"] == common).all()
assert (table["fid"] >= 0).all() and (table["fid_floor"] >= 0).all()
assert table.loc["real", "fid"] == table.loc["real", "fid_floor"]
for name in ("ms_ssim", "four_g_r_ssim", "precision", "recall", "coverage"):
    assert table[name].between(0, 1 + 1e-6).all(), name
assert (table["density"] >= 0).all()
assert set(table["extractor"]) == {extractor.name}, "one extractor for all rows"

# %% [markdown]
# A set has no distance to itself, and noise is farther away than any model that has learned something:

# %%
found = features.extract(extractor, volumes["reference"])
draw = np.random.default_rng(0)
noise = draw.random(volumes["reference"].shape, dtype=np.float32)
far = frechet_distance(found, features.extract(extractor, noise))
assert frechet_distance(found, found) < 1e-6 * far
assert far > table.loc["real", "fid"]

# %% [markdown]
# ## What we saw
#
# - A distance between sets needs its extractor, its n and its floor beside it.
# - The goal of a similarity within a set is the value of real volumes.
# - Precision and density speak of realism, recall and coverage of variety.
# - A model is better than another where the intervals say so, and for the trainings that were run.
# - All of this works for volumes of any other model too: {doc}`../book/evaluate`.
#
# ## Exercises
#
# **1 (easy).** Halve the number of volumes and compute the FID of the real row again. Which way does it go, and why?
#
# ```{dropdown} Solution
# `comparison.table_1(run, {k: v[: common // 2] for k, v in volumes.items()})`. It rises, although both sets are real: means and
# covariances of fewer volumes are less certain, and {eq}`eq-fid` counts that uncertainty as distance.
# ```
#
# **2 (medium).** Give the table a system that copies: the first training volumes, and one that averages: the mean of the
# training volumes, again and again. Predict their rows, then look.
#
# ```{dropdown} Solution
# The copies are real volumes, so no column has anything against them: none of these metrics sees memorisation, which is why
# chapter 10 looks for it. The average has MS-SSIM 1, recall and coverage near 0, and a FID that loses the whole covariance.
# ```
#
# **3 (hard).** The paper's FID is 0.0005 for real volumes and 0.0076 for the LDM. Which facts would you ask for before you
# compare them with numbers of your own?
#
# ```{dropdown} Solution
# The number of volumes in both sets; the extractor's weights, file and layer; how intensities were scaled before it, and
# the field of view; whether the real row compares two disjoint sets of people; whether samples had covariates of the
# training split. The paper tells some of them. Your own table has to tell all.
# ```

# %% [markdown]
# The last cell hands this page's numbers to the results of the run.

# %%
results = comparison.result_rows(run, table)
finish_notebook(run, "08_evaluation", pages.finite(results))
