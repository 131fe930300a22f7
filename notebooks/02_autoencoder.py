# %% [markdown]
# # The autoencoder: brains as small latents
#
# **Promise.** You train the network that turns a volume into a smaller latent and back, see what it keeps
# and what it loses, and learn why the diffusion model works in its latents and not on voxels.
#
# **Goals.** After this chapter you can
#
# 1. write down the loss of the autoencoder and say what each of its four terms is for;
# 2. read its training curves;
# 3. judge reconstructions by eye, by signal-to-noise ratio, and by what matters later: the volume of the ventricles;
# 4. say why the latents must be neither too free nor too tightly bound.
#
# This is section 2.2 of {cite:t}`pinaya2022`. You need chapter 1 for the cohort.

# %% tags=["parameters"]
profile: str = "tiny"  # sizes and settings: smoke, tiny, demo or paper
cohort: str = "atlas"  # simulated brains, or the name of a prepared BIDS folder
seed: int = 0  # of the training
runs: str = "runs"  # folder of all runs

# %% [markdown]
# We open the run and its cohort.

# %%
import numpy as np
import torch

from brainldm_core import charts, curves, figures, losses, networks, pages
from brainldm_core.conditioning import agreement
from brainldm_core.dataset import load_cohort
from brainldm_core.runner import finish_notebook
from brainldm_core.samples import measure_all
from brainldm_core.training import encode_latents, train_autoencoder

run = pages.begin(profile, cohort, seed, runs)
scans = load_cohort(run.stage("cohort"))
settings = run.profile.autoencoder

# %% [markdown]
# ## The network and its loss
#
# The encoder sees a volume $x$ and answers with a normal distribution for every latent value: a mean $\mu(x)$ and a
# standard deviation $\sigma(x)$. A latent $z$ is drawn from it, and the decoder makes a volume $\hat x$ from $z$
# {cite}`kingma2014`. Training minimises
#
# ```{math}
# :label: eq-autoencoder-loss
# \begin{aligned}
# \mathcal{L} \;=\;& \underbrace{\lVert x - \hat x \rVert_1}_{\text{voxels}}
# \;+\; \lambda_{\mathrm{KL}}\, \mathrm{KL}\!\left( \mathcal{N}(\mu, \sigma^2) \,\Vert\, \mathcal{N}(0, 1) \right) \\
# &+\; \lambda_{\mathrm{p}}\, \mathcal{L}_{\text{perceptual}}
# \;+\; \lambda_{\mathrm{adv}}\, \mathcal{L}_{\text{adversarial}}
# \end{aligned}
# ```
#
# Each term of {eq}`eq-autoencoder-loss` mends a weakness of the one before it.
#
# - The **voxel** term asks for the right grey value everywhere. Where the network cannot know, the safest answer is a
#   blur.
# - The **Kullback-Leibler** term keeps latents near zero mean and unit variance, so that a diffusion model can learn
#   them. Its weight is tiny: too large a weight would erase the anatomy from the latents.
# - The **perceptual** term compares volumes in a space where blur is costly. The paper uses features of a pretrained
#   network {cite}`zhang2018`. Where no such network can be had, profiles use the distance of Fourier amplitudes, which
#   also sees missing texture:
#
#   ```{math}
#   :label: eq-spectral
#   \mathcal{L}_{\text{spectral}} = \frac{1}{N} \sum_k \bigl|\, |F_k(\hat x)| - |F_k(x)| \,\bigr|
#   ```
#
# - The **adversarial** term comes from a small second network that learns to tell patches of reconstructions from
#   patches of real volumes {cite}`esser2021`. It enters when reconstructions are worth criticising.
#
# Three of the terms as the package has them; the voxel term is a mean of absolute differences:

# %% tags=["hide-input"]
pages.source(
    losses.kl_divergence, losses.spectral_distance, losses.adversarial_loss
)

# %% [markdown]
# The weights of this profile:

# %% tags=["hide-input"]
pages.say(
    "| weight | value |\n|:--|--:|\n"
    f"| $\\lambda_{{\\mathrm{{KL}}}}$ | {settings.kl_weight:g} |\n"
    f"| $\\lambda_{{\\mathrm{{p}}}}$ ({settings.perceptual}) | {settings.perceptual_weight:g} |\n"
    f"| $\\lambda_{{\\mathrm{{adv}}}}$, from step {settings.adversarial_start_step} | {settings.adversarial_weight:g} |"
)

# %% [markdown]
# The network is built from the profile by one function. Nothing in this book builds it a second time.

# %% tags=["hide-input"]
fresh = networks.build_autoencoder(run.profile)
voxels, latents = (
    int(np.prod(run.profile.grid.shape)),
    int(np.prod(run.profile.latent_shape)),
)
pages.say(
    f"The autoencoder has {networks.parameter_count(fresh):,} parameters (the paper's has 13,766,248). It turns {voxels:,} "
    f"voxels into a latent of {' × '.join(map(str, run.profile.latent_shape))} = {latents:,} values, a "
    f"{voxels / latents:.1f}-fold reduction (the paper's: 171-fold); along a side, one latent voxel covers "
    f"{settings.factor} voxels, or {settings.factor * run.profile.grid.spacing_mm:g} mm."
)

# %% [markdown]
# The paper's latent voxel covers 8 mm. Small profiles keep to about that size on purpose: what the diffusion model has
# to arrange are then pieces of anatomy of the same size as in the paper, only fewer details within them.
#
# ## Training
#
# The next call trains, or returns at once when this run has been trained before. If it is interrupted, the next call
# continues from the last saved state and arrives at the same weights.

# %%
record = train_autoencoder(run)
pages.banner(run, "cohort", "autoencoder", subjects=len(scans.rows("train")))

# %% tags=["hide-input"]
pages.caution(len(scans.rows("train")))

# %% [markdown]
# The training left a table of its losses. Each panel below has its own scale; pale lines are single steps. **Is this
# normal?** The grey curves behind are those of the published runs of the same settings, which differ in their seed. The
# verdict above a panel compares the last tenth of the steps with theirs, with some room on both sides.

# %% mystnb={"figure": {"caption": "Losses of the autoencoder by training step: single batches (pale) and their running mean, in front of the published runs of the same settings (grey). The adversarial panels begin where that term enters. Grey values lie in [0, 1], so the voxel term is an average error in grey values.", "name": "fig-autoencoder-losses"}, "image": {"alt": "Curves of the voxel, Kullback-Leibler, perceptual and adversarial loss against the training step."}}
table = pages.losses(run, "autoencoder")
names = {
    "l1": "voxels (L1)",
    "kl": "KL (sum)",
    "perceptual": settings.perceptual,
    "adversarial": "adversarial",
}
curves.is_this_normal(
    run,
    "autoencoder",
    {column: title for column, title in names.items() if column in table},
)

# %% [markdown]
# What the curves say in numbers:

# %% tags=["hide-input"]
tenth = max(1, len(table) // 10)
early, late = table["l1"].head(tenth).mean(), table["l1"].tail(tenth).mean()
pages.say(
    f"Over the first tenth of the {len(table)} steps the voxel error is {early:.3f}, over the last tenth {late:.3f}: "
    f"{'it fell to' if late < early else 'it stands at'} {late / early:.0%} of where it began."
)

# %% [markdown]
# ## Reconstructions
#
# The test split has never been seen in training. We encode its volumes, take the mean of each latent, and decode.

# %%
autoencoder = pages.trained_autoencoder(run)
volumes = scans.volumes("test")
mean, sigma = encode_latents(autoencoder, volumes)
with torch.no_grad():
    decoded = torch.cat([autoencoder.decode(part) for part in mean.split(8)]).clamp(
        0, 1
    )
real, rebuilt = volumes[:, 0].numpy(), decoded[:, 0].numpy()

# %% [markdown]
# Side by side, with the difference in the last row:

# %% mystnb={"figure": {"caption": "Held-out volumes (top), their reconstructions (middle) and the difference, reconstruction minus original (bottom; grey values, red where the reconstruction is brighter). Axial slices through the lateral ventricles, R marks the person's right.", "name": "fig-reconstructions"}, "image": {"alt": "Three rows of axial slices: originals, reconstructions that look alike but smoother, and difference images of scattered single voxels."}}
shown = slice(0, 6)
figures.rows_of(
    {
        "original": real[shown],
        "reconstruction": rebuilt[shown],
        "difference": rebuilt[shown] - real[shown],
    },
    limits={"difference": (-0.3, 0.3)},
)

# %% [markdown]
# Look at {numref}`fig-reconstructions` for shapes in the last row. Folds or ventricles that can be recognised there have
# moved or changed their size; single voxels without a pattern are grain, which a small latent cannot keep and a decoder
# makes anew. As one number we use the peak signal-to-noise ratio inside the brain mask $M$ (voxels that are not
# background in the original), with grey values in [0, 1]:
#
# ```{math}
# :label: eq-psnr
# \mathrm{PSNR} = -10 \log_{10} \frac{1}{|M|} \sum_{v \in M} \left( x_v - \hat x_v \right)^2 \quad \text{(dB)}
# ```

# %%
mask = real > 0
errors = np.array(
    [((a - b)[m] ** 2).mean() for a, b, m in zip(real, rebuilt, mask, strict=True)]
)
psnr = -10 * np.log10(errors)

# %% tags=["hide-input"]
pages.say(
    f"Inside the mask the reconstructions of {len(psnr)} held-out volumes reach {psnr.mean():.1f} dB on average "
    f"({psnr.min():.1f} to {psnr.max():.1f} dB); that is a root mean square error of "
    f"{np.sqrt(errors.mean()):.3f} in grey values."
)

# %% [markdown]
# ## What a latent looks like
#
# The latent is itself a small volume with a few channels. Each channel is drawn here in units of its own standard
# deviation.

# %% mystnb={"figure": {"caption": "Latents of four held-out volumes: one row a channel, axial slices through the lateral ventricles, in standard deviations from the channel's mean over the test split.", "name": "fig-latents"}, "image": {"alt": "Coarse images in which the outline of the brain and its ventricles can be recognised."}}
scaled = (mean - mean.mean((0, 2, 3, 4), keepdim=True)) / mean.std(
    (0, 2, 3, 4), keepdim=True
)
channels = {
    f"channel {index + 1}": scaled[:4, index].numpy()
    for index in range(scaled.shape[1])
}
figures.rows_of(channels, limits={name: (-3, 3) for name in channels})

# %% [markdown]
# The brain is still there, at a coarser grain: that is why convolutions, which work from place to place, can model
# latents as well as images. Two numbers say how the latents are spread:

# %%
spread, width = float(mean.std()), float((sigma**2).mean().sqrt())
divergence = float(losses.kl_divergence(mean, sigma)) / latents

# %% tags=["hide-input"]
pages.say(
    f"The means of the latents have a standard deviation of {spread:.2f} over the test split, and the encoder adds noise "
    f"of {width:.3f}, so {width**2 / (spread**2 + width**2):.1%} of the variance of a drawn latent is noise. The divergence "
    f"from a standard normal distribution is {divergence:.2f} nats for each latent value."
)

# %% [markdown]
# Latents that carry much noise would put a floor under the loss of the next chapter. Latents of a very different spread
# would not fit the noise schedule. The diffusion model therefore sees latents divided by their standard deviation over
# the training split, and that number travels in its checkpoint.
#
# ## Do reconstructions keep the ventricles?
#
# A generated brain passes through this decoder. What the decoder cannot draw, no request can bring about. So we measure
# the ventricles of each original and of its reconstruction.

# %% mystnb={"figure": {"caption": "Lateral ventricular volume (ml), measured on held-out originals and on their reconstructions by the same morphometry. Dashed: identity; solid: least squares. The title gives Pearson's r with its 95 % bootstrap interval.", "name": "fig-reconstructed-ventricles"}, "image": {"alt": "Scatter of ventricular volume of reconstructions against originals with the line of identity."}}
before, after = (
    measure_all(kind, scans.affine)["measured_lateral_ventricles_ml"]
    for kind in (real, rebuilt)
)
ventricles = agreement(before, after)
charts.scatter_with_fit(
    {"ventricles": (before, after, ventricles.note())},
    "original (ml)",
    "reconstruction (ml)",
)

# %% [markdown]
# In words:

# %% tags=["hide-input"]
pages.say(
    f"Measured on {ventricles.n} pairs: {ventricles.note()}. On average a reconstruction's ventricles are "
    f"{abs(ventricles.bias):.1f} ml {'larger' if ventricles.bias > 0 else 'smaller'} than the original's, and the mean absolute "
    f"difference is {ventricles.mae:.1f} ml. This is the ceiling for everything that is decoded in later chapters."
)

# %% [markdown]
# ## Checks

# %%
assert mean.shape == sigma.shape == (len(volumes), *run.profile.latent_shape)
assert decoded.shape == volumes.shape and torch.isfinite(decoded).all()
assert (sigma > 0).all() and spread > 0
assert (
    len(table) == record["settings"]["training"]["steps"]
    and np.isfinite(table["l1"]).all()
)
assert record["results"]["parameters"] == networks.parameter_count(fresh)
assert pages.meets(run, "reconstruction_psnr_db", psnr.mean()), (
    "reconstructions are worse than this profile should give"
)
assert pages.meets(run, "reconstruction_ventricles_r", ventricles.r), (
    "reconstructions lose the ventricles"
)

# %% [markdown]
# ## What we saw
#
# - The autoencoder exchanges voxels for a latent a fraction of the size, at the price of the grain.
# - Its loss has four terms. Each exists because the others leave a weakness.
# - Latents still look like brains, and they are scaled before the diffusion model sees them.
# - Measured ventricles survive the passage to the extent that the scatter shows. No later chapter can do better.
#
# ## Exercises
#
# **1 (easy).** The Kullback-Leibler term stays far above zero to the end. Why is that not a failure?
#
# ```{dropdown} Solution
# To carry information a latent must differ from a standard normal distribution, and the divergence measures exactly
# that difference. At zero every brain would have the same latent. The weight only sets the price: the term settles
# where more information would cost more than it saves in the other terms.
# ```
#
# **2 (medium).** Decode `mean + sigma * noise` instead of `mean`. How much does the signal-to-noise ratio fall?
#
# ```{dropdown} Solution
# Draw `z = mean + sigma * torch.randn_like(mean)`, decode and repeat the cell with {eq}`eq-psnr`. With a narrow encoder
# the loss is a small fraction of a decibel. If it were large, the decoder would depend on values that the encoder does
# not hold still, and the diffusion model would have to reproduce noise.
# ```
#
# **3 (hard).** Suppose you may double the number of latent values. Would you double the channels, or halve the size of
# a latent voxel along one side? Which helps the ventricles more, and what does it cost in chapter 3?
#
# ```{dropdown} Solution
# Copy the profile's YAML file, change `latent_channels` or the list of `channels` (one level fewer means a smaller
# latent voxel), and run this chapter with `--profile your.yaml`. More channels keep the grid of the diffusion model and
# hardly change its cost. A finer grid multiplies its cost, because convolutions work at every latent voxel. Small
# structures gain from either; compare the scatter of ventricles, not only the signal-to-noise ratio, which is dominated
# by the cortex.
# ```

# %% [markdown]
# The last cell hands this page's numbers to the results of the run.

# %%
quality = {"value": round(float(psnr.mean()), 2), "unit": "dB", "n": len(psnr)}
share = {"value": round(width**2 / (spread**2 + width**2), 4), "n": len(mean)}
kept = ventricles.result(**pages.expected(run, "reconstruction_ventricles_r"))
results = {
    "parameters": {"value": record["results"]["parameters"]},
    "reconstruction, PSNR in the mask": quality
    | pages.expected(run, "reconstruction_psnr_db"),
    "ventricles, reconstruction against original": kept,
    "latent, share of noise": share,
}
finish_notebook(run, "02_autoencoder", pages.finite(results))
