# %% [markdown]
# # Beyond the paper: copies, coverage and what averages hide
#
# **Promise.** You ask the model five questions that the paper does not: does it copy the people it learned from, does it
# cover the others, has it their detail and their noise, do its brains measure like real ones, region by region and for
# old and young, and can somebody learn from them. Each answer stands beside systems that are no models at all, and beside
# what it would have been had the model failed.
#
# **Goals.** After this chapter you can
#
# 1. search a model for copies of its training scans, and say what your search would have missed;
# 2. read precision, recall, density and coverage beside null and ceiling rows;
# 3. tell with a spectrum what a picture hides;
# 4. test many quantities at once without being fooled by one of them;
# 5. say which fault a metric sees, and to which it is blind.
#
# You need chapter 3 for the model, chapter 8 for features of volumes, and chapter 9 for the released set.

# %% tags=["parameters"]
profile: str = "tiny"  # sizes and settings: smoke, tiny, demo or paper
cohort: str = "atlas"  # simulated brains, or the name of a prepared BIDS folder
seed: int = 0  # of the training
runs: str = "runs"  # folder of all runs

# %% [markdown]
# Every question has a module of its own.

# %%
import numpy as np
import pandas as pd
import torch

from brainldm_core import audit_charts, audits, differences, faults, features, figures
from brainldm_core import nulls, pages, sensitivity, spectra, transfer, verdicts
from brainldm_core.dataset import load_cohort
from brainldm_core.metrics import prdc
from brainldm_core.release_run import find_release, read_release
from brainldm_core.runner import finish_notebook
from brainldm_core.samples import quantise, reconstruct
from brainldm_core.sampling import load_pipeline, sample

# %% [markdown]
# We open the run and read all of its scans: those that training has seen, and those that were held out.

# %%
run = pages.begin(profile, cohort, seed, runs)
scans, pipeline = load_cohort(run.stage("cohort")), load_pipeline(run.folder)
known, unseen = scans.rows("train"), scans.rows("test")
training, held_out = (scans.volumes(split)[:, 0].numpy() for split in ("train", "test"))
extractor = features.default_extractor()
pages.banner(run, "diffusion", "samples", "release", subjects=len(known))

# %% tags=["hide-input"]
pages.caution(len(known))

# %% tags=["hide-input"]
pages.say(
    f"Features of this page come from **{extractor.note}**. There are {len(training)} training and {len(held_out)} held-out "
    "scans; every number below has its n, and with tens of scans most intervals are wide."
)

# %% [markdown]
# ## Does it copy?
#
# Large diffusion models have been caught giving back pictures they were trained on {cite}`carlini2023`. With brain scans
# that would hand out the anatomy of a person. The search rests on one idea: if the model has learned the population and no
# single brain, then training people and held-out people are strangers to it alike. For a generated volume $x$ with its
# nearest training scan at distance $d_\text{train}(x)$ and its nearest held-out scan at $d_\text{held out}(x)$, look at
#
# ```{math}
# :label: eq-copy-ratio
# \rho(x) = \frac{d_\text{train}(x)}{d_\text{held out}(x)} .
# ```
#
# Two numbers come of it. The **share** of volumes that have their nearest neighbour among the training people, both sets
# cut to one size, is one half for an innocent model. And a **single volume** is suspected when $\rho$ lies below a threshold
# that at most one in twenty real held-out people falls under.
#
# The requests need care. A volume that was asked for with the covariates of a training row lies nearer to that person
# without any copying, and a request from a held-out row tilts the scale the other way. So the volumes of this search are
# asked for with the covariates of the **validation** people, who are in neither set.

# %%
count = min(64, len(held_out))
asked = scans.rows("validation")
asked = asked.iloc[np.arange(count) % len(asked)].reset_index(drop=True)
ids = [1_000_000 + row for row in range(count)]
usual = run.profile.release
fresh = sample(pipeline, asked, ids, usual.sampler, usual.steps, seed=run.seed)
fresh = quantise(fresh) / np.float32(255)

# %% [markdown]
# Distances depend on where they are taken. Latents of the model's own autoencoder know every fold; features know what a
# volume looks like as a whole. We search in both.

# %%
found = audits.spaces(run, pipeline, extractor, training, held_out)
who = audits.subjects(scans)
audited = audits.audit_all(found, fresh, who, seed=run.seed)

# %% [markdown]
# First with our eyes: generated brains, and the scans that lie nearest to them in latent space. A copy would be hard to
# overlook.

# %% mystnb={"figure": {"caption": "Generated volumes (top) with their nearest training scan (middle) and their nearest held-out scan (bottom) by distance in latent space; above each column the ratio of both distances. Axial slices through the lateral ventricles, R marks the person's right.", "name": "fig-nearest"}, "image": {"alt": "Three rows of axial slices: samples, nearest training scans and nearest held-out scans; shapes are similar in each column, folds differ."}}
nearest = audits.nearest_scans(found["latents"], fresh, training, held_out)
suspects = np.argsort(audited["latents"].ratios)[: min(7, count)]
figures.rows_of(
    {"sample": fresh[suspects]} | {name: part[suspects] for name, part in nearest.items()},
    [f"{ratio:.2f}" for ratio in audited["latents"].ratios[suspects]],
)

# %% [markdown]
# These are not any samples but the most suspicious ones, those with the smallest ratios. Now the numbers:

# %%
columns = ["n", "share", "low", "high", "p_value", "flagged", "threshold"]
rows = {
    found[key].name: {name: getattr(row, name) for name in columns}
    | {"innocent from": row.innocent[0], "to": row.innocent[1]}
    for key, row in audited.items()
}
pd.DataFrame(rows).round(3)

# %% tags=["hide-input"]
sentences = []
for key, row in audited.items():
    where = "inside" if row.innocent[0] <= row.share <= row.innocent[1] else "outside"
    single = (
        f"{100 * row.flagged:.0f} % of the volumes are below the threshold of a copy, where up to "
        f"{100 * row.false_positive_rate:.0f} % are expected of real strangers."
        if row.threshold > 0
        else "There are too few held-out people to set a threshold for single copies."
    )
    sentences.append(
        f"**In {found[key].name}**, {row.share:.2f} of {row.n} volumes [{row.low:.2f}, {row.high:.2f}] have their nearest "
        f"neighbour in the training set. That is {where} the range of an innocent model, {row.innocent[0]:.2f} to "
        f"{row.innocent[1]:.2f} (p = {row.p_value:.2g} for ratios as small as these). {single}"
    )
pages.say("\n\n".join(sentences))

# %% [markdown]
# ### What would the search have missed?
#
# A search that finds nothing has to show that it could have found something. So we plant copies of training scans and look
# for them: exact ones, copies that are brighter, noisy or moved by a voxel, and copies that went through the autoencoder,
# which is the nearest that this model can come to a copy.

# %%
levels = {
    "exact": {},
    "intensity changed by up to 5 %": {"gain": 0.05},
    "noise of 2 %": {"noise": 0.02},
    "moved by one voxel along each axis": {"shift": 1},
    "through the autoencoder": None,
}
plants, copies = audits.planted(found, pipeline, training, who, levels, seed=run.seed)
plants.round(2)

# %% [markdown]
# *Found* is the share of copies below the threshold, *traced* the share whose nearest training scan is the one they were
# made of.

# %% mystnb={"figure": {"caption": "Ratio of the distances to the nearest training and to the nearest held-out scan, for generated volumes and for planted copies that went through the autoencoder, in both spaces. Dashed: equal distances; dotted: the threshold below which a volume is suspected.", "name": "fig-copy-ratios"}, "image": {"alt": "Two panels of histograms: ratios of samples lie near one, ratios of planted copies lower where the space can tell them."}}
audit_charts.distance_ratios(
    {
        found[key].name: (
            {"samples": row.ratios, "planted copies": copies[key].ratios},
            row.threshold,
        )
        for key, row in audited.items()
    }
)

# %% tags=["hide-input"]
words = []
for key, space in found.items():
    missed = [name for name in plants.index if plants.loc[name, f"{key}: found"] < 0.8]
    if audited[key].threshold == 0:
        words.append(f"In {space.name}, held-out people are too few for a threshold, so no copy can be found.")
    elif missed:
        words.append(
            f"In {space.name}, fewer than 80 % are found of copies that are: {'; '.join(missed)}. For these, finding nothing "
            "proves little."
        )
    else:
        words.append(f"In {space.name}, at least 80 % of every kind of planted copy are found.")
pages.say(" ".join(words) + f" Each kind was tried with n = {int(plants['n'].iloc[0])} copies.")

# %% [markdown]
# One more look, at the set that would be given away. Its requests are training rows (chapter 9), so a share above one half
# is expected of it, and is no proof. Single copies, though, would show.

# %%
volumes, table = read_release(find_release(run.stage("release")), 200)
released = audits.audit_all(found, volumes, who, draws=200, seed=run.seed)

# %% tags=["hide-input"]
pages.say(
    f"Of the first {len(volumes)} volumes of the release, "
    + "; ".join(
        f"in {found[key].name} {row.share:.2f} lie nearest to a training scan"
        + (f" and {100 * row.flagged:.0f} % are below the threshold of a copy" if row.threshold > 0 else "")
        for key, row in released.items()
    )
    + "."
)

# %% [markdown]
# ### Persons, or anatomies?
#
# A simulated cohort makes this search harder than real scans would. Its people are anatomies that were bent, so "a training
# person" means a bend, not an identity. A model that has learned its training anatomies by heart, and bends them anew,
# copies no person and still knows nobody else. The same search can be asked about anatomies: each is as far away as the
# nearest of its people, and each side has as many people of each.

# %%
anatomies = audits.by_anatomy(found, scans, fresh, seed=run.seed)
anatomies.round(3) if len(anatomies) else None

# %% tags=["hide-input"]
pages.say(audits.anatomies_in_words(scans, anatomies))

# %% [markdown]
# ## Is it near, and does it cover?
#
# One distance between two sets cannot say whether brains are unreal or whether some kinds are missing. Four shares can. With
# a ball around each real volume that reaches to its $k$-th real neighbour, **precision** is the share of generated volumes
# that lie in some ball, and **recall** the share of real ones in balls around generated volumes {cite}`kynkaanniemi2019`.
# **Density** counts in how many balls a generated volume lies, and **coverage** is the share of real balls that hold one
# {cite}`naeem2020`.
#
# What is a good value? That is what the other rows are for. **Ceilings**: other real people, and what the autoencoder makes
# of them. **Nulls**: a Gaussian with the mean and covariance of all training latents, decoded, which knows no anatomy beyond
# that; and a resampler that answers a request with the training scan of the nearest covariates, which has never invented a
# brain.

# %%
ddim, ddim_table = pages.samples(run, "ddim")
n = min(len(held_out), len(ddim), len(training), len(volumes))
latents = torch.from_numpy(found["latents"].training)
latents = latents.reshape(-1, *run.profile.latent_shape)
twins = nulls.nearest_by_covariates(known, ddim_table, pipeline.ranges)
systems = {
    "real, others": training[:n],
    "reconstructed": reconstruct(pipeline, torch.from_numpy(training[:n, None])),
    "Gaussian": nulls.latent_gaussian(pipeline, latents, n, run.seed),
    "resampler": training[twins[:n]],
    "samples": ddim[:n],
    "release": volumes[:n],
}

# %% [markdown]
# And **failures**, made from training people: a few of them again and again, and all of them blurred.

# %%
few, sigma = max(1, n // 16), 0.6
failed = {
    f"{few} people only": training[np.arange(n) % few],
    "blurred": np.stack([faults.blurred(each, None, sigma) for each in training[:n]]),
}
systems |= failed

# %% [markdown]
# They look like this:

# %% mystnb={"figure": {"caption": "Ceilings, nulls, the model and failures: volumes of each system. Axial slices through the lateral ventricles, R marks the person's right.", "name": "fig-systems"}, "image": {"alt": "Rows of axial slices of real brains, reconstructions, draws of a Gaussian, resampled scans, samples, released volumes, a few people repeated, and blurred brains."}}
figures.rows_of({name: part[:7] for name, part in systems.items()})

# %% [markdown]
# The reference of all rows are the held-out scans, so that no system is held against what it was made from.

# %%
k = min(5, n - 1)
reference = found["features"].held_out[:n]
shares = pd.DataFrame({name: prdc(reference, found["features"].embed(part), k) for name, part in systems.items()}).T
ours, smooth = shares.loc["samples"], shares.loc["reconstructed"]
other, copied = shares.loc["real, others"], shares.loc["resampler"]
shares.round(2)

# %% tags=["hide-input"]
error = 0.5 / np.sqrt(n)
pages.say(
    f"Reference and rows have n = {n} each and k = {k}; features of {extractor.note}. A share from {n} volumes has a standard "
    f"error of up to {error:.2f}, so differences of less than about {2 * error:.1f} mean little. The samples have precision "
    f"{ours['precision']:.2f} and coverage {ours['coverage']:.2f}, reconstructions {smooth['precision']:.2f} and "
    f"{smooth['coverage']:.2f}, other real people {other['precision']:.2f} and {other['coverage']:.2f}."
    + (
        " These features see what the autoencoder smooths away: reconstructions of real brains do not pass for real, so a "
        "decoded sample can hardly do so either."
        if smooth["precision"] < 0.5 * other["precision"]
        else ""
    )
    + f" The resampler, which gives back training scans and nothing else, has {copied['precision']:.2f} and "
    f"{copied['coverage']:.2f}: these four shares do not see copying, and are to be read together with the search above."
    f" Had the model drawn the same {few} people again and again, precision would be "
    f"{shares.loc[f'{few} people only', 'precision']:.2f} and recall {shares.loc[f'{few} people only', 'recall']:.2f}; had "
    f"it blurred, they would be {shares.loc['blurred', 'precision']:.2f} and {shares.loc['blurred', 'recall']:.2f}."
)

# %% [markdown]
# To judge the diffusion model alone, we take the autoencoder out of the comparison: the reference are now the
# **reconstructions** of the held-out scans, and the ceilings pass through the autoencoder too.

# %%
rebuilt, _ = pages.samples(run, "reconstruction")
copies_rebuilt = reconstruct(pipeline, torch.from_numpy(systems["resampler"][:, None]))
decoded = {
    "real, others": systems["reconstructed"],
    "resampler": copies_rebuilt,
    "Gaussian": systems["Gaussian"],
    "samples": systems["samples"],
    "release": systems["release"],
}
base = found["features"].embed(rebuilt[:n])
after = {name: prdc(base, found["features"].embed(part), k) for name, part in decoded.items()}
after = pd.DataFrame(after).T
after.round(2)

# %% tags=["hide-input"]
pages.say(
    f"Once all have passed through the autoencoder (n = {n}), the samples have precision {after.loc['samples', 'precision']:.2f} and "
    f"coverage {after.loc['samples', 'coverage']:.2f}, beside {after.loc['real, others', 'precision']:.2f} and "
    f"{after.loc['real, others', 'coverage']:.2f} of other real people and {after.loc['Gaussian', 'precision']:.2f} and "
    f"{after.loc['Gaussian', 'coverage']:.2f} of the Gaussian."
)

# %% [markdown]
# ## Has it the detail, and the noise?
#
# A brain that is a little too smooth passes at a glance. Its spectrum does not. The power of a volume $x$ at spatial
# frequency $f$ is averaged over all directions,
#
# ```{math}
# :label: eq-radial-power
# P(f) = \Big\langle \tfrac{1}{V} \left| \mathcal{F}x\,(\mathbf{k}) \right|^2 \Big\rangle_{|\mathbf{k}| \approx f} ,
# ```
#
# with $V$ voxels. White noise of variance $\sigma^2$ has the power $\sigma^2$ at every frequency.

# %% mystnb={"figure": {"caption": "Radially averaged power spectra. Left: medians and the middle 80 % of volumes; right: medians relative to real held-out scans. The axis ends at the highest frequency that the voxels can hold.", "name": "fig-spectra"}, "image": {"alt": "Falling curves of power against spatial frequency for real scans, reconstructions, samples, a Gaussian and blurred scans, and their ratios to the real scans."}}
kinds = {
    "real": held_out[:n],
    "reconstructions": rebuilt[:n],
    "samples": ddim[:n],
    "Gaussian": systems["Gaussian"],
    "blurred": systems["blurred"],
}
spacing = run.profile.grid.spacing_mm
curves = {name: spectra.power_spectrum(part, spacing) for name, part in kinds.items()}
frequencies = curves["real"][0]
audit_charts.spectra(frequencies, {name: power for name, (_, power) in curves.items()})

# %% [markdown]
# Noise is estimated from the finest diagonal detail inside the head {cite}`donoho1994`. At coarse voxels fine anatomy counts
# as noise too, so the number is an upper bound, and only its comparison between rows means something.

# %%
noise = {name: spectra.noise_level(part) for name, part in kinds.items()}
middle = {name: np.median(power, axis=0) for name, (_, power) in curves.items()}
fine = pd.DataFrame(
    {
        "noise level (grey values)": {
            name: float(np.nanmedian(values)) if np.isfinite(values).any() else np.nan for name, values in noise.items()
        },
        "power at the finest, relative to real": {
            name: float(power[-1] / middle["real"][-1]) for name, power in middle.items()
        },
    }
)
fine.round(4)

# %% tags=["hide-input"]
finest = fine["power at the finest, relative to real"]
pages.say(
    f"At the finest frequency, {frequencies[-1]:.2g} cycles/mm, the samples have {finest['samples']:.2f} times the power of real "
    f"scans and the reconstructions {finest['reconstructions']:.2f} times (medians, n = {n}). What separates reconstructions "
    f"from real scans is the autoencoder's part, before the diffusion model comes in. Relative to them, the samples have "
    f"{finest['samples'] / finest['reconstructions']:.2f} times the power of the reconstructions. Had it blurred by "
    f"{sigma * spacing:g} mm (standard deviation of a Gaussian), the power would be {finest['blurred']:.2f} times that of real "
    "scans."
)

# %% [markdown]
# ## Do they measure like real brains?
#
# Chapters 3 and 5 ask whether a volume has what was asked of it. Here nothing is asked: the samples were drawn for the
# covariates of the held-out people, so as a group they should measure like them everywhere. We measure three whole-brain
# volumes and twelve regions. For each, **Cohen's d** is the difference of the means in standard deviations, and a
# Kolmogorov-Smirnov test compares the whole distributions. Among fifteen tests one in twenty comes out by chance, so the
# p-values are adjusted to control the **false-discovery rate** {cite}`benjamini1995`.

# %%
real_table = pages.samples(run, "real")[1]
whole = {
    "measured_lateral_ventricles_ml": "lateral ventricles",
    "measured_brain_ml": "brain",
    "measured_intracranial_ml": "head (intracranial)",
}
measured = [
    pd.concat([part[list(whole)], differences.regional_volumes(brains, scans.affine)], axis=1)
    for part, brains in ((ddim_table, ddim), (real_table, held_out[: len(real_table)]))
]
names = whole | {name: name for name in measured[0] if name not in whole}
compared = differences.compare_sets(*measured, names)

# %% [markdown]
# Means are in millilitres; q is the adjusted p-value.

# %%
compared[["samples", "real", "d", "low", "high", "ks", "q"]].round(3)

# %% [markdown]
# The same as a picture: a point right of the line is a volume that the samples have too much of.

# %% mystnb={"figure": {"caption": "Volumes of generated brains less those of real held-out ones, in pooled standard deviations (Cohen's d), with 95 % intervals. Filled and orange: the distributions differ at a false-discovery rate of 5 % (Kolmogorov-Smirnov).", "name": "fig-effects"}, "image": {"alt": "Fifteen points with intervals around a vertical line at zero, one for each measured volume."}}
audit_charts.effects(compared)

# %% tags=["hide-input"]
differ = compared[compared["q"] < 0.05]
half = float(((compared["high"] - compared["low"]) / 2).median())
largest = compared["d"].abs().idxmax()
pages.say(
    f"{len(differ)} of {len(compared)} volumes differ at a false-discovery rate of 5 %"
    + (f": {'; '.join(differ.index)}. " if len(differ) else ". ")
    + f"The largest effect is that of *{largest}*, d = {compared.loc[largest, 'd']:+.2f}. With n = "
    f"{compared['n_samples'].iloc[0]} and {compared['n_real'].iloc[0]} an interval reaches about {half:.2f} to either side: "
    "smaller effects than that would not be seen here, and what is not seen is not shown to be absent."
)

# %% [markdown]
# Regions are cut by planes in MNI space, and tissues by intensity with a ruler made for coarse voxels. A difference can
# therefore be one of contrast as well as of size.
#
# What would these tests have said of a model that failed? Three sets of training people tell: any of them, those that are
# left when the third with the largest ventricles is missing, as when a model never draws the tail, and the blurred ones.
# What is found of any people is a false alarm.

# %%
sizes = scans.rows("train")["ventricular_volume_ml"].rank(pct=True).to_numpy()
trials = {"any people": training[:n], "tail missing": training[sizes <= 2 / 3][:n], "blurred": systems["blurred"]}
failures = []
for name, part in trials.items():
    regions = differences.regional_volumes(part, scans.affine)
    against = differences.compare_sets(regions, measured[1], {region: region for region in regions})
    failures.append(f"**{name}** (n = {len(part)}): {differences.that_differ(against)}")

# %% tags=["hide-input"]
pages.say("Regions that differ from the held-out people:\n\n- " + "\n- ".join(failures))

# %% [markdown]
# ## For whom does it work?
#
# An average can hide that a model serves the middle of its cohort and fails at the edges. The release is the largest set we
# have, so here are its errors by age band and sex. Groups of fewer than ten volumes have no correlation.

# %%
release_table = read_release(find_release(run.stage("release")))[1]
groups = differences.by_age_and_sex(release_table)
groups.round(2)

# %% tags=["hide-input"]
large = groups[groups["n"] >= differences.FEW]
label = "ventricles, mean error (ml)"
if len(large) > 1:
    worst, best = large[label].idxmax(), large[label].idxmin()
    words = (
        f"Among groups of at least {differences.FEW} volumes, requested ventricles are missed most in: {worst[1]}, {worst[0]} years "
        f"({large.loc[worst, label]:.1f} ml, n = {large.loc[worst, 'n']}), and least in: {best[1]}, {best[0]} years "
        f"({large.loc[best, label]:.1f} ml, n = {large.loc[best, 'n']}). Old people have larger ventricles, so in millilitres "
        "they are missed by more even if the share is the same."
    )
else:
    words = f"Hardly any group has {differences.FEW} volumes, so this run cannot tell groups apart."
pages.say(words)

# %% [markdown]
# A release that does not listen would show here, in every group. We make one: the same brains, with requests that have
# changed places.

# %%
places = faults.shuffled(np.arange(len(release_table)), 1.0, np.random.default_rng(run.seed))
brains = [name for name in release_table if name.startswith("measured_")]
deaf = release_table.assign(**{name: release_table[name].to_numpy()[places] for name in brains})
deaf_groups = differences.by_age_and_sex(deaf)

# %% tags=["hide-input"]
smallest = int(unseen.groupby([unseen["age_years"].astype(float) >= unseen["age_years"].median(), "sex"]).size().min())
pages.say(
    f"Ventricles of the release are missed by {groups[label].min():.1f} to {groups[label].max():.1f} ml, those of the release "
    f"that does not listen by {deaf_groups[label].min():.1f} to {deaf_groups[label].max():.1f} ml. Precision, coverage and FID are "
    f"not given by group. Even with two age bands the smallest group has {smallest} held-out people, so that a share has a "
    f"standard error of up to {0.5 / np.sqrt(max(smallest, 1)):.2f}, and FID depends on n more than on the group."
)

# %% [markdown]
# ## Can one learn from it?
#
# A released set is of use if somebody who has only that set learns something about people. So we **train on synthetic and
# test on real** {cite}`esteban2017`: a reader of age learns from the release, and reads held-out people. Beside it stand the
# same reader trained on as many real scans, on both, and two that should fail: one whose training set does not listen, so
# that ages and brains do not belong together, and one that knows the mean age only.
#
# The reader is ridge regression on what chapter 8 and the ruler see of a volume: features and four measured volumes. Its
# one penalty is chosen inside its training set. (Training the network of chapter 5 once for each row and draw would take
# many times the minutes of this chapter. What ridge regression does not learn, a network may.)

# %%
portraits = {
    "training": sensitivity.portray(training, found, scans.affine, "training"),
    "held out": sensitivity.portray(held_out, found, scans.affine, "held_out"),
    "release": sensitivity.portray(volumes, found, scans.affine),
}
real, tested = (transfer.people_of(portraits[name], rows) for name, rows in (("training", known), ("held out", unseen)))
synthetic = transfer.people_of(portraits["release"], table)
wrong = faults.shuffled(np.arange(len(synthetic.years)), 1.0, np.random.default_rng(run.seed))
unlistening = transfer.People(synthetic.features, synthetic.years[wrong])

# %% [markdown]
# Every arm is trained on twenty random draws of three quarters of the smaller set. *Gain* is the error of the reader
# trained on real scans less that of the row, person by person: below zero, the row is worse.

# %%
arms = {
    "real": (real,),
    "synthetic": (synthetic,),
    "both": (real, synthetic),
    "synthetic, does not listen": (unlistening,),
    "mean age": (),
}
size = 3 * min(len(real.years), len(synthetic.years)) // 4
ages = transfer.read_ages(arms, tested, size, seed=run.seed)
learned = transfer.compare_arms(ages, tested.years, "real", seed=run.seed)
pd.DataFrame(learned).T.round(2)

# %% [markdown]
# The same as a picture:

# %% mystnb={"figure": {"caption": "Age read from held-out real people by ridge regression, by what it was trained on. Left: mean absolute error; right: gain over the reader trained on as many real scans, paired by person. Bars: 95 % intervals, people and training sets drawn again.", "name": "fig-transfer"}, "image": {"alt": "Two panels of points with intervals, a row for each training set: real, synthetic, both, one that does not listen, and the mean age."}}
audit_charts.age_readings(learned)

# %% [markdown]
# The other way round, the reader that has learned from real scans reads the release. If it reads well what it cannot
# teach, the brains have their age and something else is off.

# %%
back = transfer.read_ages({"real": (real,), "mean age": ()}, synthetic, size, seed=run.seed)
reverse = transfer.compare_arms(back, synthetic.years, "real", seed=run.seed)["real"]
over_null = transfer.compare_arms(ages, tested.years, "mean age", seed=run.seed)["synthetic"]

# %% tags=["hide-input"]
pages.say(transfer.in_words(learned, over_null, reverse, size, len(tested.years), len(synthetic.years)))

# %% [markdown]
# ## What would a broken model have looked like?
#
# Every number of this book is read as if it would tell a bad model from a good one. Does it? We build generators with one
# known fault each, in two or three severities, and ask every metric about all of them: blurred, noisy, too dark, with the
# checkerboard of transposed convolutions {cite}`odena2016`, with a hole, with few people again and again, without the
# tail, with copies of training scans, and deaf to what is asked. All are made from training people, and all are
# held against the held-out ones.
#
# The rule is set before we look. **Healthy** are random draws of as many training people, untouched. A metric's distance is
# counted so that 1.96 is the edge of the middle 95 % of healthy draws. One metric in twenty is beyond it by chance, and here
# are many metrics. **Caught** is therefore what lies beyond the distance that only one healthy draw in twenty passes in
# *any* metric {cite}`westfall1993`.

# %%
each = min(48, len(training) // 2, len(held_out), len(ddim), len(volumes))
bench = sensitivity.Bench(portraits["training"], portraits["held out"], known, training, each, run.seed)
healthy = bench.healthy(200)
limit = verdicts.family_limit(verdicts.standardised(healthy, healthy))
alarms = (verdicts.standardised(healthy, healthy).abs() > verdicts.OUTSIDE).any(axis=1).mean()

# %% tags=["hide-input"]
pages.say(
    f"Sets have n = {each} volumes, the reference {len(held_out)}. Of 200 healthy draws, {alarms:.0%} have at least one of the "
    f"{len(sensitivity.METRICS)} metrics outside its own 95 %: so often does one of many cry wolf. Caught is what lies beyond "
    f"{limit:.2f} instead of 1.96."
    + (" So few people set no range worth its name: read on only to see that the chain runs." if each < 20 else "")
)

# %% [markdown]
# Now the broken ones. Copies are copies of people the generator has learned from, so for each draw as many others are set
# aside as those.

# %%
chosen, learned_from = bench.draw(np.random.default_rng(run.seed + 1))
sizes = portraits["training"].measured[list(whole)].to_numpy()
broken = faults.standard_faults(chosen, learned_from, sizes, spacing, run.seed)
judged = sensitivity.judge_faults(bench, broken, learned_from, found, scans.affine)

# %% [markdown]
# The run's own model is judged by the same rule, and so is one more draw of healthy people.

# %%
smoothed = reconstruct(pipeline, torch.from_numpy(training[chosen, None]))
models = {
    "real people": (training[chosen], known.iloc[chosen], portraits["training"][chosen]),
    "reconstructions": (smoothed, known.iloc[chosen], sensitivity.portray(smoothed, found, scans.affine)),
    "samples": (ddim[:each], ddim_table[:each], sensitivity.portray(ddim[:each], found, scans.affine)),
    "release": (volumes[:each], table[:each], portraits["release"][np.arange(each)]),
}
judged = sensitivity.with_models(judged, bench, models, learned_from)

# %% [markdown]
# The whole answer is a map, a row for each generator and a column for each metric.

# %% mystnb={"figure": {"caption": "What each metric says of broken generators. Orange: above healthy people, violet: below; discs: caught; rings: outside the metric's own 95 %, which with so many metrics proves little.", "name": "fig-sensitivity"}, "image": {"alt": "Map of broken generators by metrics: each fault has discs in a few columns, and no column has discs in all rows."}}
distances = verdicts.standardised(judged, healthy)
audit_charts.sensitivity(distances, limit)

# %% [markdown]
# Fault by fault, in words made from that map:

# %% tags=["hide-input"]
kinds = [fault.name for fault in broken]
caught = (distances.abs() > limit).loc[list(dict.fromkeys(kinds))]
by_fault = caught.groupby(level=0, sort=False).any()
pages.say(
    f"Of {len(by_fault)} faults, {int(by_fault.any(axis=1).sum())} are caught by some metric in some severity. No metric sees "
    f"more than {int(by_fault.sum().max())} of them.\n\n" + "\n".join(f"- {line}" for line in verdicts.in_words(caught))
)

# %% [markdown]
# And metric by metric, which is how a table of results should be read:

# %%
pages.say(verdicts.what_is_seen(caught))

# %% [markdown]
# The numbers themselves, ● for caught and ○ for outside the range of that metric alone:

# %% tags=["hide-output"]
verdicts.marked(judged, distances, limit)

# %% tags=["hide-input"]
own = distances.drop(index=kinds, level=0).abs() > limit
pages.say(
    " ".join(
        f"The row *{name}* is caught by {', '.join(own.columns[row]) if row.any() else 'no metric'}."
        for (name, _), row in own.iterrows()
    )
    + " A model can be caught and still be useful: the map says where it differs, not by how much too much. The edge of "
    f"healthy people is a little narrow for it: draws of {each} share members, as there are only {len(training)}."
)

# %% [markdown]
# ## Checks

# %%
assert fresh.shape == (count, *run.profile.grid.shape) and np.isfinite(fresh).all()
assert set(asked["participant_id"]).isdisjoint(known["participant_id"])
assert set(asked["participant_id"]).isdisjoint(unseen["participant_id"])
for key, row in audited.items():
    assert plants.loc["exact", f"{key}: traced"] == 1, "a copy must lead to its source"
    assert row.threshold == 0 or plants.loc["exact", f"{key}: found"] == 1
for name in ("precision", "recall", "coverage"):
    assert shares[name].between(0, 1).all() and after[name].between(0, 1).all()
assert all((power > 0).all() for _, power in curves.values())
assert (compared["q"] >= compared["p"] - 1e-12).all() and groups["n"].sum() == run.profile.release.volumes
assert len(ages["real"][0]) == len(tested.years) and learned["real"]["gain"] == 0
assert each < 20 or by_fault.any(axis=1).all(), "a fault that no metric sees"

# %% [markdown]
# ## What we saw
#
# - A search for copies needs neutral requests, as many strangers as training people, and planted copies that it finds.
# - Precision, recall, density and coverage mean something beside ceilings and nulls, and nothing about copying. What an
#   autoencoder loses, no model in its latents can have.
# - Spectra tell what the autoencoder smooths away before the diffusion model begins.
# - Fifteen tests are not one test, and a small sample that shows no difference shows little.
# - Whether a set can teach is a question of its own, and needs an arm that cannot.
# - No metric sees every fault. A fault that none of your metrics can see is a fault you have not looked for.
#
# ## Exercises
#
# **1 (easy).** Move the planted copies by two voxels instead of one. What happens to the share that is found, and in which
# space?
#
# ```{dropdown} Solution
#     audits.planted(found, pipeline, training, who, {"moved by two": {"shift": 2}})[0]
#
# Latents have places, so a moved copy is far away in them. Features are averaged over the volume and hardly notice.
# ```
#
# **2 (medium).** Why are training and held-out sets cut to one size for the share, but not for the single volumes?
#
# ```{dropdown} Solution
# The nearest of many is nearer than the nearest of few. With more training than held-out people an innocent model would
# have a share above one half. Single volumes are compared with a threshold that real held-out people set, and these see the
# larger training set too, so the advantage is in the threshold already.
# ```
#
# **3 (hard).** A system draws a training scan at random and adds a smooth random warp of one voxel. Which numbers of this
# chapter would give it away, and which would praise it?
#
# ```{dropdown} Solution
# Precision, recall, density and coverage praise it, and so do spectra and regional volumes, because its brains are nearly
# real ones. Only the search for copies is left: as long as the warp is smaller than the distance between people, single
# ratios are small and nearly every volume leads back to its source. Planted copies with that warp say whether the search
# can see it.
# ```

# %% [markdown]
# The last two cells collect this page's numbers and hand them to the results of the run.

# %%
results = {}
for key, row in audited.items():
    more = {"extractor": extractor.name} if key == "features" else {}
    results[f"copies_share_{key}"] = row.result(**more)
    results[f"copies_flagged_{key}"] = {"value": round(row.flagged, 4), "n": row.n, **more}
    share = round(float(plants.loc["through the autoencoder", f"{key}: found"]), 4)
    results[f"planted_found_{key}"] = {"value": share, "n": int(plants["n"].iloc[0]), **more}
for name, value in ours.items():
    floor = {"floor": round(float(other[name]), 4), "extractor": extractor.name}
    results[name] = {"value": round(float(value), 4), "n": n, "note": extractor.note} | floor
for name, value in after.loc["samples"].items():
    floor = {"floor": round(float(after.loc["real, others", name]), 4), "extractor": extractor.name}
    results[f"{name}_after_autoencoder"] = {"value": round(float(value), 4), "n": n, "note": extractor.note} | floor
results["finest_power_relative"] = {"value": round(float(finest["samples"]), 4), "n": n}
results["regions_that_differ"] = {"value": len(differ), "n": len(compared)}

# %% [markdown]
# What was learned and what was caught goes with them.

# %%
for name in ("real", "synthetic", "mean age"):
    row = {key: round(learned[name][key], 3) for key in ("low", "high")}
    key = f"age_error_trained_on_{name.replace(' ', '_')}_years"
    results[key] = {"value": round(learned[name]["MAE"], 3), "n": len(tested.years), "unit": "years"} | row
results["faults_caught"] = {"value": int(by_fault.any(axis=1).sum()), "n": len(by_fault)}
finish_notebook(run, "10_beyond_the_paper", pages.finite(results))
