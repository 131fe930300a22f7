# %% [markdown]
# # Latent diffusion: from noise to a brain that was asked for
#
# **Promise.** You train the model that gives this book its name: a network that removes noise from latents, told at
# every step which age, sex, ventricular and brain volume are wanted. Then you measure whether it listens.
#
# **Goals.** After this chapter you can
#
# 1. write down the forward process and read its schedule;
# 2. say what predicting the noise and predicting the velocity have in common, and when the choice matters;
# 3. explain hybrid conditioning, and why attention to a single token is nothing but a bias;
# 4. judge a conditional model by requests that it has never seen, with the ceilings beside it.
#
# This is section 2.1 of {cite:t}`pinaya2022`, after {cite:t}`rombach2022` and {cite:t}`ho2020`. You need chapter 2 for
# the latents.

# %% tags=["parameters"]
profile: str = "tiny"  # sizes and settings: smoke, tiny, demo or paper
cohort: str = "atlas"  # simulated brains, or the name of a prepared BIDS folder
seed: int = 0  # of the training
runs: str = "runs"  # folder of all runs

# %% [markdown]
# We open the run.

# %%
import numpy as np
import torch

from brainldm_core import charts, curves, diffusion, figures, networks, pages
from brainldm_core.dataset import load_cohort
from brainldm_core.runner import finish_notebook
from brainldm_core.samples import sample_stage
from brainldm_core.sampling import load_pipeline, sample, sampler_timesteps
from brainldm_core.training import encode_latents, train_diffusion

run = pages.begin(profile, cohort, seed, runs)
scans = load_cohort(run.stage("cohort"))
settings = run.profile.diffusion

# %% [markdown]
# ## Forward: how a latent becomes noise
#
# Let $z_0$ be a latent of chapter 2, scaled to unit standard deviation. The forward process adds a little Gaussian noise
# in each of $T$ steps, step $t$ with variance $\beta_t$. Because sums of Gaussians are Gaussian, any step can be reached
# at once:
#
# ```{math}
# :label: eq-forward
# z_t = \sqrt{\bar\alpha_t}\, z_0 + \sqrt{1 - \bar\alpha_t}\, \epsilon, \qquad
# \bar\alpha_t = \prod_{s \le t} (1 - \beta_s), \qquad \epsilon \sim \mathcal{N}(0, 1)
# ```
#
# The paper calls its schedule linear. The released network uses variances that are linear *in their square root*, from
# $\sqrt{0.0015}$ to $\sqrt{0.0205}$, and so do we.

# %% mystnb={"figure": {"caption": "The noise schedule. Left: the weights of latent and noise in the forward process by time step. Right: logarithm of the signal-to-noise ratio, with the schedule of linear variances for comparison.", "name": "fig-schedule"}, "image": {"alt": "Two panels of curves: the signal falls from one to near zero while the noise rises; the log signal-to-noise ratio falls steadily."}}
signal, sigma = (
    part.flatten().numpy()
    for part in diffusion.signal_and_noise(settings, torch.arange(settings.timesteps))
)
betas = np.linspace(settings.beta_start, settings.beta_end, settings.timesteps)
charts.schedule(signal, sigma, {"variances linear": np.cumprod(1 - betas)})

# %% [markdown]
# And here is what it does to one latent of the test split.

# %% mystnb={"figure": {"caption": "One latent of a held-out volume (axial slice through the lateral ventricles, every channel a row) at growing time steps t, in standard deviations. At the last step the brain is gone.", "name": "fig-forward"}, "image": {"alt": "Coarse images of a latent that dissolve into noise from left to right."}}
volume = scans.volumes("test")[:1]
mean, _ = encode_latents(pages.trained_autoencoder(run), volume)
clean = (mean - mean.mean()) / mean.std()
times = torch.linspace(0, settings.timesteps - 1, 7).long()
noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).expand(
    len(times), -1, -1, -1, -1
)
noisy = diffusion.add_noise(settings, clean.expand_as(noise), noise, times).numpy()
channels = {f"channel {index + 1}": noisy[:, index] for index in range(noisy.shape[1])}
figures.rows_of(
    channels,
    [f"t = {int(time)}" for time in times],
    limits={name: (-3, 3) for name in channels},
)

# %% [markdown]
# ## Backward: what the network predicts
#
# Generating means going from $z_T$ to $z_0$. For that the network must tell signal from noise, and it can be asked in two
# ways: for the noise $\epsilon$, as in the paper, or for the velocity {cite}`salimans2022`
#
# ```{math}
# :label: eq-velocity
# v_t = \sqrt{\bar\alpha_t}\, \epsilon - \sqrt{1 - \bar\alpha_t}\, z_0 .
# ```
#
# Given $z_t$, either answer yields the other and $z_0$, so in theory nothing is lost. In practice they weigh errors
# differently. Near $t = T$ a latent is almost pure noise. Predicting $\epsilon$ is then trivial, and recovering $z_0$ from
# it divides by the nearly vanished $\sqrt{\bar\alpha_t}$: small errors are blown up. Predicting $v_t$ there means predicting
# $-z_0$, which is what sampling needs first: the average brain for the request. A long training makes up for this; a
# training of minutes does not.
#
# The loss is the mean squared error of whichever is predicted:
#
# ```{math}
# :label: eq-diffusion-loss
# \mathcal{L} = \mathbb{E}_{z_0,\, \epsilon,\, t} \left\lVert \, y_t - f_\theta(z_t, t, c) \, \right\rVert^2,
# \qquad y_t = \epsilon \ \text{ or } \ v_t
# ```

# %% tags=["hide-input"]
pages.say(
    f"Profile {run.profile.name} predicts the **{'noise' if settings.prediction == 'epsilon' else settings.prediction}** over "
    f"{settings.timesteps} time steps, with a conditioning gain of {settings.condition_gain:g}. "
    "The paper predicts the noise over 1,000, with a gain of 1."
)

# %% [markdown]
# ## Conditioning, twice
#
# The request $c$ is a vector of the four covariates, each scaled to [0, 1] by the range of the training cohort; profiles
# with mask channels add four flags that say which are known. Most people lie in a small part of that range, so the vector is
# quiet beside latents of unit variance. Profiles for short trainings therefore multiply it by a **gain**; the paper's input
# has a gain of 1. The vector enters the network by two doors at once, which the paper calls hybrid conditioning.
#
# - **Concatenation.** Each entry of $c$ becomes a constant volume of the size of the latent, stacked onto its channels.
# - **Cross-attention.** The vector is also a context that attention layers look up.
#
# There is less to the second door than its name promises. Attention is a weighted mean of the tokens of the context, and
# here the context is *one* token. With a query $q$, key $k$ and value $v$,
#
# ```{math}
# :label: eq-one-token
# \mathrm{softmax}\!\left( \frac{q\, k^\top}{\sqrt{d}} \right) v = 1 \cdot v ,
# ```
#
# because the softmax of a single number is 1. The query does not matter: every place receives the same vector, a linear
# function of the request. Hybrid conditioning in this model is concatenation plus a **learned bias**. The next cell shows
# it on the untrained network: two different sets of queries, one context, one answer.

# %%
unet = networks.build_unet(run.profile).eval()
attention = next(module.attn2 for module in unet.modules() if hasattr(module, "attn2"))
draw = torch.Generator().manual_seed(0)
context = torch.rand(1, 1, networks.conditioning_width(run.profile), generator=draw)
queries = torch.randn(2, 1, 10, attention.to_q.in_features, generator=draw)
with torch.no_grad():
    answers = [attention(query, context=context) for query in queries]
size, gap = (
    float(answers[0].abs().mean()),
    float((answers[0] - answers[1]).abs().max()),
)
places = float((answers[0] - answers[0][:, :1]).abs().max())

# %% tags=["hide-input"]
pages.say(
    f"An entry of the answer is {size:.2g} in size on average. The two answers differ by {gap:.1g} "
    f"at most, and two places of one answer by {places:.1g}."
)

# %% [markdown]
# All this is a few lines of the package. The first function is {eq}`eq-forward`, the second is what the network is asked
# for, {eq}`eq-velocity` or the noise, and the third opens the doors.

# %% tags=["hide-input"]
pages.source(diffusion.add_noise, diffusion.target, diffusion.predict)

# %% [markdown]
# Does it take both doors? We tried: three trainings that differ in nothing else, with both doors, with concatenation alone
# and with cross-attention alone. They are trials of profile tiny on the cohort atlas with seed 0, without the third door
# of the next section and not of the run of this page. Each was asked for the covariates of the same held-out people.

# %%
pages.trials("hybrid", "concatenation", "cross-attention")

# %% [markdown]
# Read the intervals before the order of the rows; one training each cannot tell small differences from chance. Without any
# door a correlation would be near zero. Constant volumes and a bias can carry the same four numbers, so the rows compare
# how soon a short training learns to listen. In profile tiny the second door is narrow: attention exists on the coarsest
# level of the network alone, while stacked volumes are there from the first layer on.
#
# ## A third door, for short trainings
#
# What does a training of minutes spend its steps on? Mostly on one thing: how the *average* brain moves with each
# covariate. The paper's long training finds that on its own. Here it was not found in time: sulci that are a little wider
# everywhere hardly change the loss. But the average is known. A linear regression of the training latents on the
# conditioning vector gives a mean latent for every request at once,
#
# ```{math}
# :label: eq-mean-latent
# \bar z(c) = a + \sum_k b_k\, c_k ,
# ```
#
# with an intercept $a$ and slopes $b_k$ of the size of a latent. A profile with `mean_latent` takes it off: the network
# sees what is left of the noisy latent, and predicts what is left of the velocity $v$ {cite}`mardani2023`,
#
# ```{math}
# :label: eq-residual
# v_\theta(z_t, t, c) = f_\theta\big(z_t - \sqrt{\bar\alpha_t}\, \bar z(c),\ \bar z(c),\ t, c\big) - \sqrt{1 - \bar\alpha_t}\; \bar z(c) .
# ```
#
# Latents are then scaled so that what is left has a standard deviation of 1. To the sampler nothing changes, but for its
# start: the last time step still holds a hundredth of the mean latent, so sampling begins with noise around
# $\sqrt{\bar\alpha_T}\, \bar z(c)$. The regression's weights stay fixed; what to make of it is left to the network. This
# is not in the paper, and it changes what the correlations at the end of this chapter can show. So one panel there shows
# the regression alone: $\bar z(c)$ decoded, without any diffusion.

# %% tags=["hide-input"]
pages.say(
    f"Profile {run.profile.name} {'shows the network' if settings.mean_latent else 'does without'} the mean latent of "
    "the request."
)

# %% [markdown]
# ## Training
#
# The latents of all training volumes, and of their mirror images, are computed once and kept: mean and standard
# deviation, so that every step can draw them anew. Training then never reads a volume. As in chapter 2, the call returns
# at once when the run has been trained.

# %%
record = train_diffusion(run)
pages.banner(
    run, "cohort", "autoencoder", "diffusion", subjects=len(scans.rows("train"))
)

# %% tags=["hide-input"]
pages.caution(len(scans.rows("train")))

# %% [markdown]
# The loss of single batches is restless, because each batch draws its own time steps and some are harder than others. In
# grey, the published runs of the same settings, and above the panel the verdict of chapter 2.

# %% mystnb={"figure": {"caption": "Loss of the diffusion model by training step: single batches (pale) and their running mean, in front of the published runs of the same settings (grey). The latents have unit variance, so a loss of 1 is what a network would get that always answers 0.", "name": "fig-diffusion-loss"}, "image": {"alt": "A falling, noisy curve of the mean squared error against the training step."}}
table = pages.losses(run, "diffusion")
curves.is_this_normal(
    run, "diffusion", {"loss": f"mean squared error ({settings.prediction})"}
)

# %% tags=["hide-input"]
tenth = max(1, len(table) // 10)
early, late = table["loss"].head(tenth).mean(), table["loss"].tail(tenth).mean()
pages.say(
    f"The mean loss is {early:.3f} over the first tenth of the {len(table)} steps and {late:.3f} over the last tenth. "
    f"The network has {record['results']['parameters']:,} parameters (the paper's: 553,168,899)."
)

# %% [markdown]
# ## A brain appears
#
# Sampling begins with pure noise. At each step the network's answer is turned into an estimate of the clean latent; here
# some of these estimates are decoded on the way. The request is the first row of the test split.

# %% mystnb={"figure": {"caption": "What the model believes at successive sampling steps: the estimate of the clean latent, decoded (axial slices through the lateral ventricles). Left: first step, right: last step.", "name": "fig-denoising"}, "image": {"alt": "Slices of a brain that begin as an average brain without detail and become sharper from left to right."}}
pipeline = load_pipeline(run.folder)
steps = run.profile.sampling.steps
request = scans.rows("test").head(1)
seen = sorted(
    {round(place * (steps - 1)) for place in (0, 0.04, 0.15, 0.3, 0.5, 0.75, 1)}
)
path = sample(pipeline, request, ids=[0], steps=steps, trajectory=seen)[0]
times = [sampler_timesteps(settings, "ddim", steps)[index] for index in seen]
figures.montage(
    path,
    [f"step {index + 1}, t = {time}" for index, time in zip(seen, times, strict=True)],
    columns=len(seen),
)

# %% [markdown]
# The first guess is the mean of everything that fits the request. What follows decides the particulars: which fold goes
# where. Large structures are settled early and details late.
#
# ## Saying one thing louder
#
# A covariate that changes every voxel by very little is learned late: the loss hardly notices it. The brain volume is
# such a covariate, because a smaller brain in a head of the same size has sulci that are a little wider everywhere.
# **Classifier-free guidance** {cite}`ho2022` makes up for a part of it. The model has practised with covariates missing,
# so it can predict twice, with the full request $c$ and with a request $c'$ that leaves something out, and go further in
# the direction of the difference:
#
# ```{math}
# :label: eq-guidance
# \hat f(z_t, t) = f_\theta(z_t, t, c') + w \left( f_\theta(z_t, t, c) - f_\theta(z_t, t, c') \right)
# ```
#
# With a scale $w = 1$ this is the plain prediction. The paper does not guide, and a model without mask channels cannot.

# %% tags=["hide-input"]
guide = run.profile.sampling
names = ", ".join(name.removesuffix("_ml").replace("_", " ") for name in guide.guided)
pages.say(
    f"Profile {run.profile.name} guides {names or 'all covariates'} with $w = {guide.guidance_scale:g}$, between "
    f"{guide.guidance_interval[0]:.0%} and {guide.guidance_interval[1]:.0%} of the time steps."
    if guide.guidance_scale != 1
    else f"Profile {run.profile.name} does not guide."
)

# %% [markdown]
# ## Does it listen?
#
# The samples stage draws volumes for requests that are rows of the **test split**: combinations of age, sex and volumes
# that occur in the cohort and that training has not seen. That is a harder and fairer test than a grid spread over the
# whole range, where extreme requests inflate a correlation.

# %%
drawn = sample_stage(run)
samples, asked = pages.samples(run, "ddim")
pages.say(f"{len(samples)} volumes, each for the request of one held-out row.")

# %% [markdown]
# Above each slice stand the ventricular volume that was asked for and the one that was measured, in ml.

# %% mystnb={"figure": {"caption": "Generated brains ordered by the ventricular volume that was asked for; above each slice: asked, then measured volume of the lateral ventricles (ml). Axial slices through the lateral ventricles, R marks the person's right.", "name": "fig-samples"}, "image": {"alt": "Sixteen generated axial slices whose ventricles grow from the first to the last."}}
order = asked["ventricular_volume_ml"].astype(float).argsort().to_numpy()
order = order[np.linspace(0, len(order) - 1, min(16, len(order))).round().astype(int)]
figures.montage(samples[order], pages.asked_and_measured(asked.iloc[order]))

# %% [markdown]
# Beside them, the real volumes whose covariates were the requests. A sample is not meant to be the same person: it is
# meant to be somebody of that age, sex and those volumes.

# %% mystnb={"figure": {"caption": "Same requests: a volume of the cohort (top), its reconstruction by the autoencoder (middle) and the sample for its covariates (bottom). Axial slices through the lateral ventricles.", "name": "fig-real-and-generated"}, "image": {"alt": "Three rows of axial slices: cohort, reconstructions and samples with similar ventricle sizes in each column."}}
real, _ = pages.samples(run, "real")
rebuilt, _ = pages.samples(run, "reconstruction")
few = order[np.linspace(0, len(order) - 1, min(7, len(order))).round().astype(int)]
figures.rows_of(
    {"cohort": real[few], "reconstruction": rebuilt[few], "sample": samples[few]},
    [
        f"{value:.0f} ml"
        for value in asked["ventricular_volume_ml"].iloc[few].astype(float)
    ],
)

# %% [markdown]
# Now the measurement. Each point is a sample: what was asked for on the horizontal axis, what was measured on the
# vertical one.

# %% mystnb={"figure": {"caption": "Requested and measured lateral ventricular volume (ml) of held-out rows: the real volumes themselves, their reconstructions, samples drawn for their covariates, and the decoded mean latent of the regression. Dashed: identity; solid: least squares; titles: Pearson's r with 95 % bootstrap interval.", "name": "fig-ventricles-asked-measured"}, "image": {"alt": "Four scatter plots of measured against requested ventricular volume with the line of identity."}}
KINDS = {"real": "cohort", "reconstruction": "reconstructions", "ddim": "samples"}
KINDS |= {"mean": "regression alone"} if settings.mean_latent else {}
VENTRICLES = ("ventricular_volume_ml", "measured_lateral_ventricles_ml")
panels, ventricles = pages.agreements(run, KINDS, *VENTRICLES)
charts.scatter_with_fit(panels, "requested ventricles (ml)", "measured (ml)")

# %% [markdown]
# The same for the brain volume, normalised for head size:

# %% mystnb={"figure": {"caption": "Requested and measured brain volume (ml, normalised for head size), arranged as in the figure before.", "name": "fig-brain-asked-measured"}, "image": {"alt": "Three scatter plots of measured against requested brain volume with the line of identity."}}
BRAIN = ("brain_volume_ml", "measured_brain_volume_ml")
panels, brain = pages.agreements(run, KINDS, *BRAIN)
charts.scatter_with_fit(panels, "requested brain (ml)", "measured (ml)")

# %% [markdown]
# A correlation alone says little; it has to be read beside its ceilings. The **cohort** row says how well this
# measurement agrees with the covariates in real volumes, where nothing was generated. The **reconstruction** row adds the
# loss of the autoencoder. What the **samples** lack on top of that is the diffusion model's own. The **regression alone**
# says how much of their correlation needed no diffusion model: it draws one smooth brain for each request, always the
# same, and a smooth brain has no chance in it that could blur a correlation.

# %% mystnb={"figure": {"caption": "Pearson correlation of requested and measured volume with 95 % bootstrap intervals. Cohort: the measurement itself; reconstructions: measurement and autoencoder; samples: measurement, autoencoder and diffusion model; regression alone: no diffusion.", "name": "fig-ceilings"}, "image": {"alt": "Points with intervals for cohort, reconstructions, samples and regression alone, one panel for ventricles and one for the brain."}}
charts.correlations(
    {
        title: {name: (row.r, row.low, row.high) for name, row in rows.items()}
        for title, rows in {"ventricles": ventricles, "brain": brain}.items()
    }
)

# %% tags=["hide-input"]
pages.say(
    f"Ventricles: samples {ventricles['samples'].note()}; reconstructions {ventricles['reconstructions'].note()}; "
    f"cohort {ventricles['cohort'].note()}. A sample misses its request by {ventricles['samples'].mae:.1f} ml on average. "
    f"{ventricles['samples'].response()}\n\n"
    f"Brain: samples {brain['samples'].note()}; reconstructions {brain['reconstructions'].note()}; cohort "
    f"{brain['cohort'].note()}. A sample misses its request by {brain['samples'].mae:.0f} ml on average. "
    f"{brain['samples'].response()}\n\n"
    "The paper reports r = 0.972 for the ventricles, over 1,000 samples, with voxels of 1 mm and another measurement."
)

# %% [markdown]
# A response below 1 means that the model plays safe: requests far from the average come out nearer to it. More training
# mends that first. A bias that is the same in all three panels belongs to the ruler (chapter 1), not to the model.
#
# Two reservations belong to these numbers. In a simulated cohort the covariates are measured on the labels from which the
# image was made, so the first row is kinder than real scans would be. And the spread of the requests matters: a cohort
# with a wider range of ventricles gives a higher r for the same errors. That is why the error in millilitres stands beside
# each correlation.
#
# ## Checks

# %%
assert np.all(np.diff(signal) < 0) and np.allclose(signal**2 + sigma**2, 1, atol=1e-5)
assert torch.allclose(answers[0], answers[1], atol=1e-5), (
    "one token: the query must not matter"
)
assert (
    len(table) == record["settings"]["training"]["steps"]
    and np.isfinite(table["loss"]).all()
)
assert samples.shape == (len(asked), *run.profile.grid.shape)
assert 0 <= samples.min() and samples.max() <= 1
held_out = set(scans.rows("test")["participant_id"])
assert set(asked["participant_id"]) <= held_out, "requests must be held-out rows"

# %% [markdown]
# Where the profile says what it should reach on the simulated cohort, the samples must reach it:

# %%
for title, found in {"ventricles": ventricles, "brain": brain}.items():
    assert pages.meets(run, f"samples_{title}_r", found["samples"].r), (
        f"{title}: below the profile"
    )

# %% [markdown]
# ## What we saw
#
# - The forward process is one formula; the schedule decides how fast the signal is lost.
# - Noise and velocity are two questions with one answer in common. Short trainings need the one that asks for the brain.
# - The request enters as constant channels and as a bias, whatever the second is called.
# - A model is judged on held-out requests, in correlation *and* in millilitres, beside the ceilings.
#
# ## Exercises
#
# **1 (easy).** At which time step are signal and noise equally strong? Find it in the figure, then compute it.
#
# ```{dropdown} Solution
# Where the two curves of {numref}`fig-schedule` cross, both weights are $\sqrt{1/2}$:
#
#     int(np.argmin(np.abs(signal - sigma)))
# ```
#
# **2 (medium).** From {eq}`eq-forward` and {eq}`eq-velocity`, derive $z_0$ from $z_t$ and $v_t$.
#
# ```{dropdown} Solution
# Write $a = \sqrt{\bar\alpha_t}$ and $s = \sqrt{1 - \bar\alpha_t}$, with $a^2 + s^2 = 1$. Then
# $a z_t - s v_t = a^2 z_0 + a s \epsilon - a s \epsilon + s^2 z_0 = z_0$. It is a rotation by the angle whose cosine is
# $a$, so nothing is ever divided by a small number.
# ```
#
# **3 (hard).** Requests of this chapter are rows of the test split. Replace them by a grid over the whole training range
# and compute r again. It rises although the model is the same. Why, and which of the two would you report?
#
# ```{dropdown} Solution
# Pearson's r compares the errors with the spread of the requests. On a uniform grid the spread is larger than in a
# cohort, where most people lie near the middle, so equal errors give a larger r. Report the value for requests as they
# occur, say so, and give the error in millilitres, which does not depend on the spread.
# ```

# %% [markdown]
# The last cell hands this page's numbers to the results of the run.

# %%
rows = {"parameters": {"value": record["results"]["parameters"]}}
for title, found in {"ventricles": ventricles, "brain": brain}.items():
    floors = {"samples": pages.expected(run, f"samples_{title}_r")}
    rows |= {
        f"{title}, {kind}": row.result(**floors.get(kind, {}))
        for kind, row in found.items()
    }
    rows[f"{title}, samples, mean absolute error"] = {
        "value": round(found["samples"].mae, 2),
        "unit": "ml",
        "n": len(asked),
    }
finish_notebook(run, "03_latent_diffusion", pages.finite(rows))
