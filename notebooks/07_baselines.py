# %% [markdown]
# # Baselines: two adversaries with the same time
#
# **Promise.** You give two older kinds of generator exactly the training time that the diffusion model had, put their
# brains beside its own, and find out whether they draw many brains or one brain many times.
#
# **Goals.** After this chapter you can
#
# 1. write down the losses of a least-squares GAN and of a VAE-GAN, and say what each term asks for;
# 2. read the loss curves of two networks that play against each other;
# 3. recognise mode collapse in three ways: by eye, voxel by voxel, and in one number.
#
# This is the comparison of section 3.1 of {cite:t}`pinaya2022` with its figure 1. The paper does not publish the
# architectures of its baselines, so ours are reconstructions. You need chapter 3 for the samples of the diffusion model.

# %% tags=["parameters"]
profile: str = "tiny"  # sizes and settings: smoke, tiny, demo or paper
cohort: str = "atlas"  # simulated brains, or the name of a prepared BIDS folder
seed: int = 0  # of the training
runs: str = "runs"  # folder of all runs

# %% [markdown]
# Module `baselines` holds both models, module `comparison` says which volumes stand for each model.

# %%
import numpy as np
import pandas as pd

from brainldm_core import charts, comparison, curves, figures, losses, pages
from brainldm_core.baselines import feature_distance, sample_baseline, train_baselines
from brainldm_core.dataset import load_cohort
from brainldm_core.runner import finish_notebook
from brainldm_core.samples import sample_stage

# %% [markdown]
# ## Two losses
#
# A generative adversarial network has a generator $G$, which turns a random vector $u$ into a volume, and a discriminator
# $D$, which tells volumes of the cohort from generated ones. The **LSGAN** {cite}`mao2017` lets $D$ aim at 1 for real and
# at 0 for generated volumes, and $G$ at having its volumes taken for real:
#
# ```{math}
# :label: eq-lsgan
# \mathcal{L}_D = \tfrac{1}{2}\, \mathbb{E}_x \left[ (D(x) - 1)^2 \right] + \tfrac{1}{2}\, \mathbb{E}_u \left[ D(G(u))^2 \right],
# \qquad
# \mathcal{L}_G = \mathbb{E}_u \left[ (D(G(u)) - 1)^2 \right]
# ```
#
# Nothing in {eq}`eq-lsgan` asks for variety. A generator that has found one volume that passes may draw it for every $u$,
# and its loss will not tell. That is **mode collapse**.
#
# The **VAE-GAN** {cite}`larsen2016` adds an encoder $q(u \mid x)$, so that every real volume must have a vector from which
# it can be drawn again. What counts as "again" is decided not by voxels but by the features $D_\ell$ of one layer of the
# discriminator:
#
# ```{math}
# :label: eq-vaegan
# \mathcal{L}_{G,q} = \lambda_a \mathcal{L}_G
# + \lambda_f\, \mathbb{E}_x\, \overline{\left( D_\ell(G(u_x)) - D_\ell(x) \right)^2}
# + \lambda_k\, D_\mathrm{KL}\!\left( q(u \mid x) \,\Vert\, \mathcal{N}(0, 1) \right), \qquad u_x \sim q(u \mid x)
# ```
#
# The bar is a mean over features. The second term forbids the one-volume trick for encoded vectors. The third pulls those
# vectors towards the normal distribution from which samples are drawn later. Where the pull is too weak, the vectors that
# we draw are not the ones that the generator has learned; where it is too strong, the encoder has nothing left to say.

# %% [markdown]
# In the package these are two functions, the second for the VAE-GAN alone:

# %% tags=["hide-input"]
pages.source(losses.adversarial_loss, feature_distance)

# %% tags=["hide-input"]
run = pages.begin(profile, cohort, seed, runs)
weights = run.profile.baselines
pages.say(
    f"In profile {run.profile.name} the vector u has {weights.latent_size} entries. The weights of the three terms are "
    f"{weights.adversarial_weight:g} (adversarial), {weights.feature_weight:g} (features, of level {weights.feature_layer} of "
    f"the discriminator, counted from 0) and {weights.kl_weight:g} (divergence)."
)

# %% [markdown]
# Neither sees age, sex or volumes: they learn what brains look like, and nobody can ask them for one.
#
# ## The same seconds
#
# Counting steps would be unfair, since a step costs each model something else. Both baselines get the seconds that the
# training of the diffusion model took in this run, on the same machine. (The autoencoder's training comes on top for the
# diffusion model; the baselines need none.) As in the chapters before, the call returns at once when that has been done.

# %%
record = train_baselines(run)
sample_stage(run)
scans = load_cohort(run.stage("cohort"))
train = scans.rows("train")
pages.banner(run, "diffusion", "baselines", subjects=len(train))

# %% tags=["hide-input"]
pages.caution(len(train))

# %% [markdown]
# What the same time bought:

# %%
MODELS = {"lsgan": "LSGAN", "vaegan": "VAE-GAN"}
parts = {MODELS[key]: record["results"][key] for key in MODELS}
columns = {
    "steps": "steps",
    "training_seconds": "seconds",
    "parameters": "generator's parameters",
}
pd.DataFrame.from_dict(parts, orient="index")[list(columns)].rename(columns=columns)

# %% [markdown]
# The curves of two players do not fall like those of a single network: when one improves, the other's loss rises. In
# {eq}`eq-lsgan` a discriminator that cannot tell anything answers ½ everywhere, and then both losses are ¼.

# %% mystnb={"figure": {"caption": "Losses of the LSGAN by training step: single batches (pale) and running mean, in front of the published runs of the same settings (grey). A value of 0.25 for both is a discriminator that cannot tell; a discriminator's loss near 0 is one that always can.", "name": "fig-lsgan-losses"}, "image": {"alt": "Two curves, of the discriminator and of the generator, that move against each other."}}
tables = {key: comparison.baseline_losses(run, key) for key in MODELS}
players = {
    "discriminator": "discriminator, LSGAN",
    "generator": "generator, LSGAN",
}
curves.is_this_normal(run, "lsgan", players)

# %% [markdown]
# The VAE-GAN has two more terms, and they are the ones to watch: its reconstructions must come nearer in features.

# %% mystnb={"figure": {"caption": "Losses of the VAE-GAN by training step, before their weights, in front of the published runs (grey): the two players, the distance of reconstructions in features of the discriminator, and the Kullback-Leibler divergence of the encoder.", "name": "fig-vaegan-losses"}, "image": {"alt": "Four panels of curves: discriminator, generator, feature distance and divergence against the training step."}}
terms = {
    "discriminator": "discriminator, VAE-GAN",
    "generator": "adversarial term",
    "feature": "feature distance",
    "kl": "divergence (nats)",
}
curves.is_this_normal(run, "vaegan", terms)

# %% tags=["hide-input"]
late = {key: table.tail(max(1, len(table) // 10)) for key, table in tables.items()}
pages.say(
    "Over the last tenth of the steps the discriminator's loss is "
    f"{late['lsgan']['discriminator'].mean():.2g} for the LSGAN and {late['vaegan']['discriminator'].mean():.2g} for the "
    f"VAE-GAN, the generator's {late['lsgan']['generator'].mean():.2g} and {late['vaegan']['generator'].mean():.2g}."
)

# %% [markdown]
# ## Side by side
#
# Now figure 1 of the paper, from this run. We draw as many volumes of each baseline as there are samples of the diffusion
# model.

# %%
cohort_volumes, _ = pages.samples(run, "real")
ldm, _ = pages.samples(run, "ddim")
drawn = {"cohort": cohort_volumes, "LDM": ldm}
drawn |= {
    name: comparison.as_kept(sample_baseline(run, key, len(ldm), run.seed))
    for key, name in MODELS.items()
}

# %% [markdown]
# Rows are sets; columns have nothing in common, except that the LDM was asked for the covariates of the person above.

# %% mystnb={"figure": {"caption": "Volumes of the cohort and of three models trained on it: the latent diffusion model (LDM), the LSGAN and the VAE-GAN, both given the training seconds of the LDM. The first volumes of each, not chosen. Axial slices through the lateral ventricles, R marks the person's right.", "name": "fig-models-side-by-side"}, "image": {"alt": "Four rows of axial brain slices: real ones, those of the diffusion model, and those of two adversarial networks."}}
figures.rows_of({name: volumes[:7] for name, volumes in drawn.items()})

# %% [markdown]
# ## Many brains, or one?
#
# A row that looks good may still be one brain seven times. The first test is by eye: take two samples and subtract them.

# %% mystnb={"figure": {"caption": "Two pairs of volumes of each set with their absolute differences (grey values, black is none). Where a difference is black, both samples are the same there. Axial slices through the lateral ventricles.", "name": "fig-pairs"}, "image": {"alt": "For each of four sets two pairs of brain slices, each pair followed by the picture of its difference."}}
pairs = {}
for name, volumes in drawn.items():
    a, b, c, d = volumes[[0, 1, -2, -1]]
    pairs[name] = np.stack([a, b, np.abs(a - b), c, d, np.abs(c - d)])
figures.rows_of(pairs, ["first", "second", "difference"] * 2)

# %% [markdown]
# The second test takes all samples at once: the standard deviation at each voxel. In the cohort it is large where people
# differ, along the folds of the cortex and around the ventricles. A collapsed model is dark everywhere.

# %% mystnb={"figure": {"caption": "Standard deviation over the volumes of each set at each voxel (grey values, one scale for all). Axial slices through the lateral ventricles.", "name": "fig-spread-maps"}, "image": {"alt": "Four maps of variation side by side; bright at ventricles and cortex where volumes of a set differ."}}
maps = np.stack([comparison.spread(volumes) for volumes in drawn.values()])
top = round(float(np.quantile(maps, 0.999)), 2)
row = "standard deviation"
figures.rows_of({row: maps}, list(drawn), limits={row: (0, max(top, 0.01))})

# %% [markdown]
# The third test is a number, the paper's: the mean structural similarity (MS-SSIM, chapter 8) among pairs of one set. It is
# 1 if all volumes are the same. The cohort's own value is the goal, not the lowest possible one, because noise is varied
# as well.

# %%
alike = {name: comparison.alikeness(volumes) for name, volumes in drawn.items()}
spreads = dict(zip(drawn, (float(part.mean()) for part in maps), strict=True))
shares = {name: value / spreads["cohort"] for name, value in spreads.items()}
pd.DataFrame(
    {
        "volumes": {name: found.n for name, found in alike.items()},
        "pairs": {name: found.pairs for name, found in alike.items()},
        "MS-SSIM": {name: round(found.value, 4) for name, found in alike.items()},
        "spread, share of the cohort's": {k: round(v, 3) for k, v in shares.items()},
    }
)

# %% [markdown]
# Its picture, with the cohort's value as a line:

# %% mystnb={"figure": {"caption": "Mean MS-SSIM among pairs of volumes of each model, with 95 % jackknife interval; dashed: the cohort. To the right of the line a model's samples are more alike than people are, at 1 they are all the same.", "name": "fig-alike"}, "image": {"alt": "Points with intervals for three models on one axis, and a dashed line at the cohort's value."}}
points = {k: (v.value, v.low, v.high) for k, v in alike.items() if k != "cohort"}
charts.dots({"MS-SSIM among pairs": (points, alike["cohort"].value)}, "cohort")

# %% tags=["hide-input"]
models = [name for name in drawn if name != "cohort"]
verdicts = [
    comparison.collapse_words(name, shares[name], alike[name], alike["cohort"])
    for name in models
]
pages.say(
    "\n\n".join(verdicts)
    + "\n\nThe paper found 0.9997 for its LSGAN, 0.9671 for its VAE-GAN, 0.6555 for its LDM and 0.6536 for real scans."
)

# %% [markdown]
# Two reservations. The paper's values are not ours to compare, number by number: they are of whole heads at 1 mm and five
# scales of MS-SSIM, ours of brains on a coarse grid with fewer scales, where any two brains are more alike. And an
# adversarial network is a matter of tuning. What these pages show is what a plain one reaches in the time that a plain
# diffusion model needs, not what the best one could reach.
#
# ## Checks

# %%
budget = record["results"]["budget_seconds"]
for key, name in MODELS.items():
    part = record["results"][key]
    assert part["steps"] == len(tables[key]) > 0, name
    assert np.isfinite(tables[key].to_numpy(float)).all(), (
        f"{name}: a loss is no number"
    )
    assert part["training_seconds"] < 2 * budget + 60, f"{name}: more than its time"
for name, volumes in drawn.items():
    assert volumes.shape[1:] == run.profile.grid.shape, name
    assert 0 <= volumes.min() and volumes.max() <= 1, name
    assert 0 <= alike[name].value <= 1 + 1e-6, name

# %% [markdown]
# A sample of a baseline must be that of its number, whatever is drawn beside it:

# %%
again = sample_baseline(run, "lsgan", 2, run.seed)
assert np.allclose(comparison.as_kept(again), drawn["LSGAN"][:2], atol=1.01 / 255)

# %% [markdown]
# ## What we saw
#
# - An adversarial loss asks for volumes that pass, not for many different ones.
# - The VAE-GAN's encoder asks for every volume of the cohort; its price is a prior that must fit.
# - Equal time, not equal steps, makes a comparison of different models fair.
# - Pairs, a map and one number tell mode collapse; the goal is the cohort's value.
#
# ## Exercises
#
# **1 (easy).** A discriminator answers ½ for every volume. Show that both losses of {eq}`eq-lsgan` are ¼.
#
# ```{dropdown} Solution
# $\mathcal{L}_D = \tfrac12 (\tfrac12 - 1)^2 + \tfrac12 (\tfrac12)^2 = \tfrac14$ and
# $\mathcal{L}_G = (\tfrac12 - 1)^2 = \tfrac14$.
# ```
#
# **2 (medium).** Draw two random vectors of the VAE-GAN and walk from one to the other. Then do the same with two volumes of
# the cohort, by way of the encoder. Which walk stays nearer to brains, and why?
#
# ```{dropdown} Solution
# The second, unless the divergence is small. Between encoded vectors the generator was trained, between drawn ones only
# the adversarial term was. The divergence in {numref}`fig-vaegan-losses` says how far apart these two kinds of vectors are.
# ```
#
# **3 (hard).** Give every model noise instead of training: add Gaussian noise of standard deviation 0.1 to one single volume
# of the cohort, 64 times. What do the map, MS-SSIM and the share of spread say, and which of them is deceived?
#
# ```{dropdown} Solution
# `noisy = np.clip(drawn["cohort"][:1] + 0.1 * np.random.default_rng(0).normal(size=drawn["cohort"].shape), 0, 1)`. The share
# of spread may reach the cohort's although there is one brain only; the map gives it away, because it is even where people
# differ and where they do not. MS-SSIM falls too. Therefore realism has to be measured beside variety: chapter 8.
# ```

# %% [markdown]
# The last cell hands this page's numbers to the results of the run.

# %%
results = {}
for name, found in alike.items():
    ends = {"low": round(found.low, 4), "high": round(found.high, 4)}
    cells = {"value": round(found.value, 4), "n": found.pairs}
    cells |= ends if np.isfinite(list(ends.values())).all() else {}
    results[f"MS-SSIM among pairs, {name}"] = cells
    share = {"value": round(shares[name], 4), "n": found.n}
    results[f"spread as a share of the cohort's, {name}"] = share
for name, part in parts.items():
    row = {"value": part["training_seconds"], "unit": "s", "n": part["steps"]}
    results[f"training time, {name}"] = row | {"note": "n: steps"}
finish_notebook(run, "07_baselines", pages.finite(results))
