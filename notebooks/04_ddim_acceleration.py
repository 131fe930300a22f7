# %% [markdown]
# # DDIM: the same model in fewer steps
#
# **Promise.** You draw the same brains with a thousand steps and with fifty, put them side by side, and see what the
# saved time costs.
#
# **Goals.** After this chapter you can
#
# 1. write down the one update that DDPM and DDIM share, and point to the number in which they differ;
# 2. say why fifty steps can replace a thousand without training anything;
# 3. compare two samplers fairly: same model, same requests, same first noise, same machine;
# 4. say what "as good as" would have to mean, and whether it has been shown.
#
# The paper draws with 1,000 steps in 142.3 s and with 50 in 7.6 s on a TITAN RTX, at nearly the same quality
# {cite}`pinaya2022`. You need chapter 3 for the model.

# %% tags=["parameters"]
profile: str = "tiny"  # sizes and settings: smoke, tiny, demo or paper
cohort: str = "atlas"  # simulated brains, or the name of a prepared BIDS folder
seed: int = 0  # of the training
runs: str = "runs"  # folder of all runs

# %% [markdown]
# The samplers are two small functions: which time steps to visit, and with which coefficients.

# %%
import time

import numpy as np
import pandas as pd

from brainldm_core import equivalence, figures, pages
from brainldm_core.conditioning import agreement
from brainldm_core.runner import finish_notebook
from brainldm_core.samplers import sampler_coefficients, sampler_timesteps
from brainldm_core.samples import sample_stage
from brainldm_core.sampling import load_pipeline, sample

# %% [markdown]
# Finished stages are read, not made again.

# %%
run = pages.begin(profile, cohort, seed, runs)
pipeline = load_pipeline(run.folder)
settings = run.profile.diffusion
drawn = sample_stage(run)
pages.banner(
    run,
    "autoencoder",
    "diffusion",
    "samples",
    subjects=pipeline.training["subjects"],
)

# %% tags=["hide-input"]
pages.caution(pipeline.training["subjects"])

# %% [markdown]
# ## One update for both
#
# At time step $t$ the network's answer yields an estimate $\hat z_0$ of the clean latent and $\hat\epsilon$ of the noise in
# it (chapter 3). Going to an earlier step $s < t$ means mixing them anew for that step, with some fresh noise
# $\xi \sim \mathcal{N}(0, 1)$ if wanted {cite}`song2021`:
#
# ```{math}
# :label: eq-ddim
# z_s = \sqrt{\bar\alpha_s}\, \hat z_0 + \sqrt{1 - \bar\alpha_s - \sigma_t^2}\; \hat\epsilon + \sigma_t\, \xi,
# \qquad
# \sigma_t = \eta \sqrt{\frac{1 - \bar\alpha_s}{1 - \bar\alpha_t}} \sqrt{1 - \frac{\bar\alpha_t}{\bar\alpha_s}}
# ```
#
# With $\eta = 1$ and every time step visited this is DDPM {cite}`ho2020`: a random walk in which each step depends only on
# the one before. With $\eta = 0$ it is DDIM: after the first noise nothing is left to chance, and the path from noise to
# latent is a smooth curve. A smooth curve can be followed with long strides; a random walk cannot. That is the whole
# trick, and the network never learns of it.
#
# The coefficients of {eq}`eq-ddim` are a short table. Here are its first and last rows for the sampler of this profile.

# %%
steps = run.profile.sampling.steps
visited = sampler_timesteps(settings, "ddim", steps)
coefficients = pd.DataFrame(
    sampler_coefficients(settings, visited, eta=0.0).numpy(),
    columns=["clean", "noise", "fresh noise"],
)
coefficients.insert(0, "t", visited)
coefficients.iloc[[0, 1, -2, -1]].round(4)

# %% [markdown]
# ## Side by side
#
# Both samplers started from the same noise for the same requests. The same noise does not lead them to the same brain:
# DDPM adds chance at every step and ends elsewhere.

# %% mystnb={"figure": {"caption": "Same requests, same first noise: all time steps of DDPM (top) and DDIM (bottom). Above each column the ventricular volume asked for (ml). Axial slices through the lateral ventricles, R marks the person's right.", "name": "fig-ddpm-ddim"}, "image": {"alt": "Two rows of generated axial slices that look alike in kind; each column shares its ventricle size but differs in folds."}}
ddpm, ddpm_table = pages.samples(run, "ddpm")
ddim, ddim_table = pages.samples(run, "ddim")
n = len(ddpm)
shown = slice(0, min(n, 7))
asked = [f"{value:.0f} ml" for value in ddpm_table["ventricular_volume_ml"][shown]]
names = {"ddpm": f"DDPM {settings.timesteps}", "ddim": f"DDIM {steps}"}
figures.rows_of({names["ddpm"]: ddpm[shown], names["ddim"]: ddim[shown]}, asked)

# %% [markdown]
# The table sets both against the request. All rows of DDPM are compared with the same requests of DDIM.

# %%
seconds = drawn["results"]["seconds_a_volume"]
tables = {"ddpm": ddpm_table, "ddim": ddim_table.iloc[:n]}
pair = ("ventricular_volume_ml", "measured_lateral_ventricles_ml")
found = {
    kind: agreement(*(part[column] for column in pair)) for kind, part in tables.items()
}
columns = ["n", "seconds a volume", "ventricles, r", "ventricles, mean error (ml)"]
rows = [(row.n, seconds[kind], row.r, row.mae) for kind, row in found.items()]
pd.DataFrame(rows, list(names.values()), columns).round(3)

# %% tags=["hide-input"]
pages.say(
    f"A volume takes {seconds['ddpm']:.2f} s with {names['ddpm']} and {seconds['ddim']:.2f} s with {names['ddim']}, on "
    f"{pages.machine(drawn['hardware'])}, in batches of {run.profile.sampling.batch_size}: DDIM is "
    f"{seconds['ddpm'] / seconds['ddim']:.1f} times as fast. The paper's ratio is 18.7, on a graphics card. Over the same {n} "
    f"requests the mean error of the ventricles is {found['ddpm'].mae:.1f} ml with DDPM and {found['ddim'].mae:.1f} ml with "
    "DDIM."
)

# %% [markdown]
# With so few volumes a difference between these errors says little; chapter 3 has the larger sample for DDIM. Decoding a
# latent costs the same for both, so the more it costs, the further the ratio of times falls below the ratio of steps.
#
# ## How few steps are enough?
#
# Since DDIM is deterministic, we can follow the same curve with longer and longer strides and see how far we stray.

# %%
rows = ddim_table.head(min(4, n))
counts = [count for count in (2, 5, 10, 25) if count < steps] + [steps]
strides, taken = {}, {}
for count in counts:
    start = time.perf_counter()
    strides[count] = sample(
        pipeline, rows, ids=list(range(len(rows))), steps=count, seed=run.seed
    )
    taken[count] = time.perf_counter() - start

# %% [markdown]
# Each row of the picture follows the curves of the same noises with the number of steps at its left.

# %% mystnb={"figure": {"caption": "The same noises followed by DDIM with growing numbers of steps (rows). Columns: requests of four held-out rows, with the ventricular volume asked for (ml). Axial slices through the lateral ventricles.", "name": "fig-fewer-steps"}, "image": {"alt": "Rows of axial slices: with two steps blurred brains, with more steps sharper ones that hardly change in the last rows."}}
titles = [f"{value:.0f} ml" for value in rows["ventricular_volume_ml"]]
figures.rows_of(
    {f"{count} steps": volumes for count, volumes in strides.items()}, titles
)

# %% [markdown]
# The same in numbers, with the time that each batch took:

# %%
distance = {
    count: float(np.abs(volumes - strides[steps]).mean())
    for count, volumes in strides.items()
}
pd.DataFrame(
    {
        "mean difference (grey values)": {
            count: round(value, 4) for count, value in distance.items()
        },
        "seconds for the batch": {
            count: round(value, 2) for count, value in taken.items()
        },
    }
).rename_axis("steps")

# %% [markdown]
# Differences are to the last row, not to the truth. Better solvers for the same curve need fewer steps still; that is a
# later chapter's subject.
#
# ## As good as?
#
# Two errors that look alike, or two intervals that overlap, do not show that one sampler is as good as another: with few
# volumes everything overlaps. The claim needs three things **before** anyone looks. A **margin**: a difference that would
# not matter. **Pairs**: both samplers answer the same request from the same first noise, so that what they share cancels,
# the ruler's bias too. And **enough of them**. The claim holds where the whole 95 % interval of the mean paired difference
# lies inside the margin.
#
# A thousand steps for hundreds of volumes take hours here, so this was a trial apart (`benchmarks/equivalence.py`) with
# one trained model. Each request is a new simulated person whom no network has seen, with one noise. Its margins come
# from real volumes alone and are half of a floor: for millilitres, of what the autoencoder moves the measured volume of a
# real head; for FID, of the FID of as many real volumes; for 1 - MS-SSIM of the two volumes of a noise, of its mean over
# pairs of people. FID differences have their interval from halves, the same rows of both sets.

# %%
trial = equivalence.published_trial(run.profile.name)
equivalence.trial_table(trial)

# %% tags=["hide-input"]
where = f"Run `{trial['run']}`, {pages.machine(trial['hardware'])}.\n\n" if trial else ""
pages.say(where + equivalence.trial_words(trial))

# %% [markdown]
# *Differs* means that the whole interval lies beyond the margin; *not shown* leaves it open. A row that compares the two
# volumes of a noise asks whether both samplers end at the same brain. For DDPM they need not: it adds noise on its way.
#
# ## Checks

# %%
assert (
    len(visited) == steps
    and visited == sorted(visited, reverse=True)
    and visited[-1] == 0
)
last = sampler_coefficients(settings, visited, eta=0.0)[-1].numpy()
assert np.allclose(last, [1, 0, 0], atol=1e-6), (
    "the last step keeps the clean estimate alone"
)
assert ddpm.shape[1:] == ddim.shape[1:] and np.isfinite(ddpm).all()
assert list(ddpm_table["participant_id"]) == list(ddim_table["participant_id"][:n]), (
    "the requests are the same"
)
assert 5 * steps >= settings.timesteps or seconds["ddim"] < seconds["ddpm"]
assert distance[steps] == 0 and all(np.isfinite(value) for value in distance.values())

# %% [markdown]
# The trial, where there is one, has one n for all of its rows, and each difference lies in its interval:

# %%
compared = [pair["rows"] for pair in trial["comparisons"]] if trial else []
for row in (row for rows in compared for row in rows.values()):
    assert row["n"] == trial["n"] and row["low"] <= row["difference"] <= row["high"]

# %% [markdown]
# ## What we saw
#
# - DDPM and DDIM share one update; $\eta$ decides how much chance enters on the way.
# - Without chance the path is a smooth curve, and long strides along it are enough.
# - A comparison of samplers needs the same model, requests, noise and machine, and its n beside every number.
# - "As good as" is a claim about an interval and a margin that was set beforehand; without both it is not shown.
#
# ## Exercises
#
# **1 (easy).** With $\eta = 0$, draw the same request twice with the same id, then with two ids. What do you see?
#
# ```{dropdown} Solution
# `sample(pipeline, rows.iloc[[0, 0]], ids=[7, 7])` gives the same volume twice: nothing is left to chance after the first
# noise, which belongs to the id. With `ids=[7, 8]` two people of the same age, sex and volumes appear.
# ```
#
# **2 (medium).** Show that {eq}`eq-ddim` with $\eta = 1$ and $s = t - 1$ has the variance of the DDPM posterior,
# $\tilde\beta_t = \beta_t (1 - \bar\alpha_{t-1}) / (1 - \bar\alpha_t)$.
#
# ```{dropdown} Solution
# Because $\bar\alpha_t / \bar\alpha_{t-1} = 1 - \beta_t$, the second root is $\sqrt{\beta_t}$, so
# $\sigma_t^2 = \beta_t (1 - \bar\alpha_{t-1}) / (1 - \bar\alpha_t)$, which is $\tilde\beta_t$.
# ```
#
# **3 (hard).** Interpolate between two noises and decode the samples in between with DDIM. A straight line between two
# Gaussian noises is a poor path. Why, and what is better?
#
# ```{dropdown} Solution
# Halfway along a straight line between two independent noises the variance is one half, and the model has never seen such
# a start: the sample comes out too smooth. Interpolate on the sphere, $\cos(\phi)\, \epsilon_1 + \sin(\phi)\, \epsilon_2$
# with $\phi$ from 0 to $\pi / 2$, which keeps the variance at 1 on the way.
# ```

# %% [markdown]
# The last cell hands this page's numbers to the results of the run.

# %%
KEYS = {"ddpm": "seconds_ldm_1000", "ddim": "seconds_ldm_ddim50"}
results = {}
for kind, row in found.items():
    time_taken = {"value": round(seconds[kind], 3), "unit": "s", "n": row.n}
    error = {"value": round(row.mae, 2), "unit": "ml", "n": row.n}
    results[KEYS[kind]] = time_taken | {"note": f"{names[kind]}, a volume"}
    results[f"{names[kind]}, ventricles, mean absolute error"] = error
results["DDIM, speed-up over DDPM"] = {
    "value": round(seconds["ddpm"] / seconds["ddim"], 2),
    "n": n,
}
finish_notebook(run, "04_ddim_acceleration", pages.finite(results))
