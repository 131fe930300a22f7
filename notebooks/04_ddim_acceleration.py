# %% [markdown]
# # DDIM: the same model in fewer steps
#
# **Promise.** You draw the same brains with a thousand steps, with fifty and with ten, put them side by side, and see
# what the saved time costs.
#
# **Goals.** After this chapter you can
#
# 1. write down the one update that DDPM and DDIM share, and point to the number in which they differ;
# 2. say why fifty steps can replace a thousand, and ten fifty, without training anything;
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

from brainldm_core import equivalence, figures, pages, sampler_results
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
ids = list(range(len(rows)))
strides, taken = {}, {}
for count in counts:
    start = time.perf_counter()
    strides[count] = sample(pipeline, rows, ids, steps=count, seed=run.seed)
    taken[count] = time.perf_counter() - start

# %% [markdown]
# Each row of the picture follows the curves of the same noises with the number of steps at its left.

# %% mystnb={"figure": {"caption": "The same noises followed by DDIM with growing numbers of steps (rows). Columns: requests of four held-out rows, with the ventricular volume asked for (ml). Axial slices through the lateral ventricles.", "name": "fig-fewer-steps"}, "image": {"alt": "Rows of axial slices: with two steps blurred brains, with more steps sharper ones that hardly change in the last rows."}}
titles = [f"{value:.0f} ml" for value in rows["ventricular_volume_ml"]]
figures.rows_of(
    {f"{count} steps": volumes for count, volumes in strides.items()}, titles
)

# %% [markdown]
# With two steps the brains of {numref}`fig-fewer-steps` are nearly what the network makes of pure noise: the average of
# all brains that fit the request. From five steps on each is somebody, and the last rows are hard to tell apart.
#
# ## A solver that remembers
#
# DDIM takes each stride along the direction in which it stands, and forgets it. On a bend that leads off the road by an
# amount that shrinks with the number of steps. One who remembers the direction of the stride before knows how the road
# bends, and that is all that DPM-Solver++ {cite}`lu2022` adds.
#
# It is easiest to see in another clock. Write $\alpha_t = \sqrt{\bar\alpha_t}$ and $\sigma_t = \sqrt{1 - \bar\alpha_t}$, and let
# $\lambda_t = \ln(\alpha_t / \sigma_t)$ tell the time: half the logarithm of signal over noise. With $h = \lambda_s - \lambda_t$, a stride
# is
#
# ```{math}
# :label: eq-dpm
# z_s = \frac{\sigma_s}{\sigma_t}\, z_t + \alpha_s \left(1 - e^{-h}\right) D,
# \qquad
# D = \hat z_0 + \frac{h}{2 h'} \left(\hat z_0 - \hat z_0'\right)
# ```
#
# Primes mark the stride before. With $D = \hat z_0$ this is DDIM, {eq}`eq-ddim` with $\eta = 0$, written in the new clock.
# The second term of $D$ carries the change of the clean estimate half a stride further, which makes the error of a stride
# shrink with a higher power of its length. It costs a subtraction; the network is asked once a step, as before. UniPC
# {cite}`zhao2023` corrects each stride once more when the next answer of the network is in, also without asking again.
#
# In this clock the strides should be equally long. Steps that are even in $t$ spend most of their number where $\lambda$
# hardly moves. Here are the places that ten steps visit:

# %%
few = 10 if settings.timesteps > 100 else 4
pd.DataFrame(
    {kind: sampler_timesteps(settings, kind, few) for kind in ("ddim", "dpmpp")}
).T

# %% [markdown]
# The samplers now follow the same four noises, and we measure how far each ends from where the road leads. Where that is,
# DPM-Solver++ with many steps says well enough for this picture; the trial below follows all time steps.

# %%
reference = sample(pipeline, rows, ids, "dpmpp", steps, seed=run.seed)
strayed = {"ddim": {count: strides[count] for count in counts}, "dpmpp": {}}
for count in counts[1:-1]:
    strayed["dpmpp"][count] = sample(pipeline, rows, ids, "dpmpp", count, seed=run.seed)
distance = {
    sampler_results.TITLES[kind]: {
        count: 255 * float(np.abs(volumes - reference).mean())
        for count, volumes in ends.items()
    }
    for kind, ends in strayed.items()
}
pd.DataFrame(distance).rename_axis("steps").round(2).fillna("not drawn")

# %% [markdown]
# Numbers are mean differences in grey levels of 255, over all voxels. Read across a row for the same work, and down a
# column for the same solver.

# %% tags=["hide-input"]
first, second = distance.values()
gains = [f"{first[c] / second[c]:.1f} with {c} steps" for c in second]
pages.say(
    f"DDIM strays further than DPM-Solver++ by these factors: {', '.join(gains) or 'too few steps to tell'} "
    f"({len(rows)} noises, one model)."
)

# %% [markdown]
# ## Quality against steps, steps against seconds
#
# Four noises show how a solver strays. Whether it matters is a question to hundreds of volumes: is their distribution as
# near to that of real brains, and do they have what was asked for? The trial of the next section drew the same requests
# with every sampler and many numbers of steps.

# %%
curve = pages.published("trials", f"sampler-curve-{run.profile.name}")
speed = pages.published("benchmarks", f"sampling-{run.profile.name}-cpu")
table = sampler_results.curve_table(curve, speed)
table

# %% tags=["hide-input"]
pages.say(sampler_results.curve_words(curve))

# %% [markdown]
# The same as curves, and against time:

# %% mystnb={"figure": {"caption": "Published trial of samplers. Left: FID by number of steps, with the FID of as many real volumes (dotted) and of DDPM over all time steps (dashed). Middle: mean distance to DDIM over all time steps from the same noise, in grey levels of 255. Right: FID by seconds of a volume (noise to decoded volume), both relative to DDPM; stars: the paper's two points, measured with another extractor, on other volumes and on a graphics card.", "name": "fig-sampler-curve"}, "image": {"alt": "Three charts: FID falls with steps and second-order samplers reach their level with fewer; distances fall as straight lines on logarithmic axes, steeper for second-order samplers; relative FID stays near one while seconds shrink by up to two orders."}}
sampler_results.curve_figure(curve, speed) if curve else pages.say("No curve has been published for this profile.")

# %% [markdown]
# In the left chart of {numref}`fig-sampler-curve` look for where each line becomes flat: from there on more steps buy nothing
# that FID sees, and what is left is the model's. The middle chart has the same order without any statistics, since each
# volume is compared with the end of its own curve. On the right, ours and the paper's points share only their form: quality
# relative to a thousand steps, time relative to a thousand steps.

# %% [markdown]
# ## Where the seconds go
#
# Fewer steps make the loop shorter; decoding and writing stay. So the ratio of steps promises more than the clock gives,
# and the less the more expensive the decoder is. *Counted* is the ratio of operations, decoding included; a step in which
# guidance acts asks the network twice, which weighs on DDIM 50 and DPM-Solver++ 10 alike. The released bundle's recipe, with
# the same networks, asks once a step, but one volume at a time and in single precision. For a single volume the convolutions of
# a CPU take a slow path, so that factor belongs to this machine; on a graphics card it would be another.

# %%
sampler_results.speed_table(speed)

# %% [markdown]
# Times as fast, from the same medians:

# %%
sampler_results.ratio_table(speed)

# %% tags=["hide-input"]
where = f"On {pages.machine(speed['environment'])}. " if speed else ""
pages.say(where + sampler_results.speed_words(speed, "dpmpp:10"))

# %% [markdown]
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
trial = pages.published("trials", f"equivalence-{run.profile.name}")
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
strayed_by = distance["DDIM"]
assert all(np.isfinite(value) for line in distance.values() for value in line.values())
assert len(strayed_by) < 4 or strayed_by[counts[-1]] < strayed_by[counts[0]]

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
# - A solver of second order remembers one stride, asks the network no more often, and needs a fraction of the steps.
# - Decoding and writing do not shrink with the steps: the clock gives less than the count of steps promises.
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
