# %% [markdown]
# # Conditioning: does the model do as it is told?
#
# **Promise.** You ask the model of chapter 3 for brains and measure every covariate of what comes: ventricles, brain
# volume, age and sex. Then you turn one knob at a time and watch which dials move.
#
# **Goals.** After this chapter you can
#
# 1. judge a conditional model by correlation *and* by its errors in millilitres and years, beside the ceilings;
# 2. say why a high correlation with age need not mean that the model listens to age;
# 3. read a cross-talk matrix, and tell an answer to the request from an accident of the noise;
# 4. ask for some covariates and leave the others open;
# 5. set every number beside its ceiling and beside what ignoring the request would give.
#
# This is section 3.2 of {cite:t}`pinaya2022` with its figures 2 and 3. There, 1,000 samples gave r = 0.972 for the
# ventricles and r = 0.692 for brain age. You need chapter 3 for the model.

# %% tags=["parameters"]
profile: str = "tiny"  # sizes and settings: smoke, tiny, demo or paper
cohort: str = "atlas"  # simulated brains, or the name of a prepared BIDS folder
seed: int = 0  # of the training
runs: str = "runs"  # folder of all runs

# %% [markdown]
# We need what draws, what measures, and what compares. Module `sweeps` makes requests that differ in one thing,
# `conditioning` compares them with the answers, `interventions` says what else has moved, `regression` draws straight
# lines, `scorecard` makes the tables, and `brain_age` reads an age from a picture.

# %%
import numpy as np
import pandas as pd

from brainldm_core import charts, conditioning, features, figures, interventions
from brainldm_core import pages, regression, scorecard, sweeps, widgets
from brainldm_core.covariates import COLUMNS, numeric
from brainldm_core.dataset import load_cohort
from brainldm_core.runner import finish_notebook
from brainldm_core.samples import measure_all, sample_stage
from brainldm_core.sampling import load_pipeline

# %% [markdown]
# The samples are those of chapter 3, one for each row of the test split. New is the age network; its training returns
# at once when it has been done.

# %%
run = pages.begin(profile, cohort, seed, runs)
scans = load_cohort(run.stage("cohort"))
train = scans.rows("train")
sample_stage(run)
pipeline = load_pipeline(run.folder)
read_age = sweeps.age_reader(run)
pages.banner(run, "cohort", "diffusion", "samples", "brain_age", subjects=len(train))

# %% tags=["hide-input"]
pages.caution(len(train))

# %% tags=["hide-input"]
known = {column: int(np.isfinite(numeric(train, column)).sum()) for column in COLUMNS}
pages.say(
    f"Known in how many of the {len(train)} training scans: "
    + ", ".join(f"`{column}` {count}" for column, count in known.items())
    + ". What is known in none was never learned, and sweeps of it below stand still. "
    + sweeps.departures(pipeline.profile)
)

# %% [markdown]
# ## What is asked, and who measures it
#
# A request has four entries, and each needs a ruler of its own that has had no part in the training of the generator.
#
# | asked for | measured by |
# |:--|:--|
# | ventricles (ml) | the morphometry of chapter 1, from intensities |
# | brain volume, normalised for head size (ml) | the same |
# | age (years) | a network that has learned to read age from the real training volumes |
# | sex | a linear discriminant on three measured volumes: ventricles, brain, head; and one on features of the picture |
#
# A ruler has errors too. So every number below stands beside its **ceilings**: the same ruler on the real volumes whose
# covariates were the requests (cohort), and on those volumes after a pass through the autoencoder (reconstructions).
#
# The age network is that of Cole and colleagues, which the paper used as well: blocks of two convolutions and a pooling
# step, and one linear output. The next cell lets it read the age of every volume of the samples stage.

# %%
KINDS = {"real": "cohort", "reconstruction": "reconstructions", "ddim": "samples"}
volumes, tables = {}, {}
for kind, name in KINDS.items():
    volumes[name], table = pages.samples(run, kind)
    tables[name] = table.assign(measured_age_years=read_age(volumes[name]))
asked = tables["samples"]

# %% [markdown]
# ## Requested against measured
#
# First the pairs of columns: what was asked for, and what was measured of it.

# %%
PAIRS = {
    "ventricles": ("ventricular_volume_ml", "measured_lateral_ventricles_ml"),
    "brain volume": ("brain_volume_ml", "measured_brain_volume_ml"),
    "age": ("age_years", "measured_age_years"),
}
UNITS = {"ventricles": "ml", "brain volume": "ml", "age": "years"}

# %% [markdown]
# The paper's figure 3 has two scatter plots, ventricles and age. Ours adds the brain volume.

# %% mystnb={"figure": {"caption": "Requested and measured covariates of the samples, one point for each held-out row: lateral ventricles, normalised brain volume and age. Dashed: identity; solid: least squares; titles: Pearson's r with 95 % bootstrap interval.", "name": "fig-asked-measured-all"}, "image": {"alt": "Three scatter plots of measured against requested ventricles, brain volume and age, each with the line of identity."}}
found = {
    quantity: {
        name: conditioning.agreement(*(table[column] for column in pair))
        for name, table in tables.items()
    }
    for quantity, pair in PAIRS.items()
}
panels = {
    f"{quantity} ({UNITS[quantity]})": (
        asked[column],
        asked[measured],
        found[quantity]["samples"].note(),
    )
    for quantity, (column, measured) in PAIRS.items()
}
charts.two_scatters(panels, "asked for", "measured")

# %% [markdown]
# The table has all three rulers on all three kinds of volumes. *Slope* is how much more is measured for one unit more
# that is asked for. *Bias* is the mean of measured less requested, *mean error* the mean of its size; both are in the unit
# of the row. The brackets hold 95 % of what resampled rows give.

# %%
scorecard.scorecard(found, UNITS)

# %% tags=["hide-input"]
ventricles, brain, age = (found[quantity]["samples"] for quantity in PAIRS)
pages.say(
    f"A sample misses its ventricles by {pages.number(ventricles.mae, 1)} ml on average, its brain volume by {pages.number(brain.mae, 0)} ml and its "
    f"age by {pages.number(age.mae, 1)} years. Of these the real volumes already show {pages.number(found['ventricles']['cohort'].mae, 1)} ml, "
    f"{pages.number(found['brain volume']['cohort'].mae, 0)} ml and {pages.number(found['age']['cohort'].mae, 1)} years: that much is the rulers'."
)

# %% [markdown]
# A bias in reconstructions is the autoencoder's loss or the ruler's. What the samples add to it is the diffusion
# model's. A slope below 1 in samples, with reconstructions near 1, means that the model plays safe.
#
# ## Age, and the shortcut to it
#
# Age needs a closer look. Ventricles grow and the brain shrinks as we age, so **volumes alone tell age**. A model that
# obeys the requested volumes and ignores the requested age will still make pictures whose apparent age goes with the
# requested one. How far does the shortcut lead? A straight line from the two volumes to age, fitted on the training
# rows and applied to the requests, needs no picture at all.

# %%
VOLUMES = ["ventricular_volume_ml", "brain_volume_ml"]
shortcut = regression.linear_prediction(
    train[VOLUMES], train["age_years"], asked[VOLUMES]
)
alone = conditioning.agreement(asked["age_years"], shortcut)
beyond = {
    name: regression.partial_row(
        table["age_years"], table["measured_age_years"], table[VOLUMES]
    )
    for name, table in tables.items()
}

# %% [markdown]
# The figure shows the age that the network reads from real volumes, from reconstructions and from samples.

# %% mystnb={"figure": {"caption": "Age of held-out rows and the age that the network reads from their volumes, from their reconstructions and from samples drawn for their covariates (years). The first panel is the ceiling. Dashed: identity; solid: least squares.", "name": "fig-brain-age"}, "image": {"alt": "Three scatter plots of the age read from a volume against the age of the person or of the request."}}
panels = {
    name: (table["age_years"], table["measured_age_years"], found["age"][name].note())
    for name, table in tables.items()
}
charts.scatter_with_fit(panels, "age asked for (years)", "age read (years)")

# %% tags=["hide-input"]
pages.say(
    f"Samples: {age.note()}. Ceiling, real volumes: {found['age']['cohort'].note()}; reconstructions: "
    f"{found['age']['reconstructions'].note()}. The shortcut, two requested volumes and no picture: {alone.note()}. "
    "The paper reports r = 0.692 over 1,000 samples; in 291 real people volumes alone gave 0.695.\n\n"
    "What age has to say beyond the two volumes is a partial correlation: "
    + ", ".join(
        f"{name} {scorecard.cell(row['value'], row['low'], row['high'])}"
        for name, row in beyond.items()
    )
    + "."
)

# %% [markdown]
# Look at the reconstructions before you judge the samples. An age network is free to read whatever tells age in real
# volumes, fine grain included, and an autoencoder takes fine grain away.

# %% tags=["hide-input"]
scatter = {name: table["measured_age_years"].std() for name, table in tables.items()}
kept = scatter["reconstructions"] / scatter["cohort"]
words = ", ".join(f"{name} {pages.number(value, 1)}" for name, value in scatter.items())
pages.say(
    f"Standard deviation of the ages that are read, in years: {words}. "
    + (
        "From decoded volumes the network reads nearly one age for all. **This ruler does not carry over to them**, and "
        "what it says of the samples is no evidence about the model, here and below."
        if kept < 0.5
        else "The ruler carries over to decoded volumes."
        if kept >= 0.5
        else ""
    )
)

# %% [markdown]
# The fair question is then: what happens when **age alone** is moved, while noise and volumes stay? We draw eight
# ages from two noises, with the medians of the training cohort for everything else.

# %%
base = sweeps.typical_request(train)
ages = sweeps.sweep_requests(base, "age_years", sweeps.spread(train, "age_years", 8))
_, aged = sweeps.draw(pipeline, ages, noises=[0, 1], seed=run.seed, age=read_age)
fixed = conditioning.agreement(aged["age_years"], aged["measured_age_years"])

# %% [markdown]
# A panel a noise, so that each holds one person at eight ages.

# %% mystnb={"figure": {"caption": "Age alone is moved: requested age and the age read from the sample (years), for two noises; sex, ventricles and brain volume are the same in all requests. Dashed: identity; solid: least squares.", "name": "fig-age-alone"}, "image": {"alt": "Two scatter plots, one a noise, of the age that is read against the age that was asked for."}}
panels = {
    f"noise {noise}": (
        part["age_years"],
        part["measured_age_years"],
        f"n = {len(part)}",
    )
    for noise, part in aged.groupby("noise")
}
charts.scatter_with_fit(panels, "age asked for (years)", "age read (years)")

# %% tags=["hide-input"]
drift = {
    quantity: conditioning.agreement(aged["age_years"], aged[PAIRS[quantity][1]]).slope
    for quantity in ("ventricles", "brain volume")
}
pages.say(
    f"With noise and volumes fixed: {fixed.note()}, slope {scorecard.cell(*fixed.interval('slope'))}. Over the same sweep the measured "
    f"ventricles change by {pages.number(drift['ventricles'])} ml a year of requested age and the brain by "
    f"{pages.number(drift['brain volume'])} ml, although neither was asked to."
)

# %% [markdown]
# A correlation over a sweep is not comparable with one over held-out rows: an even sweep has more extreme requests and
# no other person's anatomy in between. Read the slope. If it is well above 0, age is heard for itself; in these brains
# it can show in the contrast of grey and white matter.
#
# ## Sex, as far as a picture shows it
#
# Nothing in a brain-only volume of coarse voxels says F or M outright. What differs between the sexes on average is the
# size of the head. So we fit a straight line from three measured volumes to sex on the training scans. For two groups
# that is Fisher's **linear discriminant**: least squares finds the same direction. Two numbers tell how well it separates
# women from men. The area under the ROC curve is the share of pairs, one of each, that are ordered rightly; chance is one
# half. Accuracy needs a threshold, which is fixed on the training scans, half way between the means of the two groups;
# naming the more frequent sex every time reaches the share of the majority. The cohort row is the ceiling.

# %%
RULED = [
    "measured_lateral_ventricles_ml",
    "measured_brain_volume_ml",
    "measured_intracranial_ml",
]
learned = measure_all(scans.volumes("train")[:, 0].numpy(), scans.affine)
men = numeric(train, "sex")
of_training = regression.linear_prediction(learned[RULED], men, learned[RULED])
threshold = regression.half_way(of_training, men)
scores, sexes, right = {}, {}, {}
for name, table in tables.items():
    scores[name] = regression.linear_prediction(learned[RULED], men, table[RULED])
    sexes[name] = regression.separation(scores[name], numeric(table, "sex"))
    right[name] = regression.accuracy(scores[name], numeric(table, "sex"), threshold)

# %% tags=["hide-input"]
pages.say(
    "Sexes are told apart in "
    + "; ".join(
        f"{name}: {pages.number(row['value'])} of pairs [{pages.number(row['low'])}, {pages.number(row['high'])}], "
        f"{scorecard.cell(*(right[name][key] for key in ('value', 'low', 'high')))} of heads named rightly"
        for name, row in sexes.items()
    )
    + f". The majority is {pages.number(right['samples']['null'])} of the requests. "
    "Where the ceiling itself holds one half, nothing can be said about the samples."
)

# %% [markdown]
# A value of the samples above the ceiling is no triumph. It means that sex decides more of the head in samples than in
# people: their heads scatter too little around the mean of their sex.
#
# The requested ventricles and brain volume differ a little between the sexes as well, so a part of this could again be
# a shortcut. The cross-talk matrix below moves sex alone.
#
# In people, sex shows in more than size. A second discriminant may use whatever the extractor of chapter 8 sees in the
# picture. It has many more features than scans, so it is a ridge regression, whose penalty the training scans choose.

# %%
extractor = features.default_extractor()
seen = features.extract(extractor, scans.volumes("train"))
middle = regression.half_way(regression.ridge_prediction(seen, men, seen), men)
sexes_seen, right_seen = {}, {}
for name, table in tables.items():
    looked_at = features.extract(extractor, volumes[name])
    score = regression.ridge_prediction(seen, men, looked_at)
    sexes_seen[name] = regression.separation(score, numeric(table, "sex"))
    right_seen[name] = regression.accuracy(score, numeric(table, "sex"), middle)

# %% tags=["hide-input"]
better = sexes_seen["cohort"]["value"] > sexes["cohort"]["value"]
pages.say(
    f"Features of {extractor.name} tell the sexes apart in "
    + "; ".join(
        f"{name}: {scorecard.cell(row['value'], row['low'], row['high'])} of pairs"
        for name, row in sexes_seen.items()
    )
    + f". On real volumes that is {'more' if better else 'no more'} than three measured volumes tell"
    + (
        "."
        if better
        else ": here such features are of no more use than size."
    )
)

# %% [markdown]
# ## One knob at a time
#
# Now the paper's figure 2. One noise, five ventricular volumes and five brain volumes, all else as in the median
# request. Each knob goes from the 5 % to the 95 % quantile of the training cohort.

# %%
knobs = {
    column: sweeps.sweep_requests(base, column, sweeps.spread(train, column, 5))
    for column in VOLUMES
}
swept, answers = sweeps.draw(
    pipeline, pd.concat(knobs.values()), noises=[0], seed=run.seed
)

# %% [markdown]
# Above each slice stands what was asked for, under it what was measured.

# %% mystnb={"figure": {"caption": "One noise, one knob: requests that differ in ventricular volume alone (top) and in brain volume alone (bottom). Above each slice the request, under it the measured volume (ml). Axial slices through the lateral ventricles, R marks the person's right.", "name": "fig-one-knob"}, "image": {"alt": "Two rows of five axial slices of one brain; in the first the ventricles widen, in the second the sulci narrow from left to right."}}
parts = {
    name: answers[answers["moved"] == PAIRS[name][0]]
    for name in ("ventricles", "brain volume")
}
figures.panels(
    {name: pages.panel_row(swept, part, PAIRS[name]) for name, part in parts.items()}
)

# %% tags=["hide-input"]
slopes = {
    name: conditioning.agreement(*(part[column] for column in PAIRS[name])).slope
    for name, part in parts.items()
}
pages.say(
    f"For one millilitre more that is asked for, the five panels show {pages.number(slopes['ventricles'])} ml more of "
    f"ventricles in the first row and {pages.number(slopes['brain volume'])} ml more of brain in the second."
)

# %% [markdown]
# It stays the same person: the outline and the large folds are the noise's, and only what was asked to move should move.
#
# ### Your hand on the knob
#
# Turn it yourself. In JupyterLab the next cell has a slider for the ventricles and one for the brain volume; age and sex
# stay those of the median request. Each time a slider is released, a brain is drawn and measured, and its point joins the
# samples of this chapter. On this page the ten brains of {numref}`fig-one-knob` stand there instead.
#
# Move one slider in a few steps and look at the line that your points make. Is it as steep as the dashed one? Does it
# bend at the ends of the grey band, where the training cohort ends? Then press *New noise* and walk the same way back.

# %% mystnb={"figure": {"caption": "One knob by hand: measured against requested volume (ml). Joined points: one noise, one request turned, all else as in the median request. Grey points: the samples of chapter 3, one for each held-out row. Shaded: training range; dashed: what was asked for.", "name": "fig-by-hand"}, "image": {"alt": "Two panels of measured against requested volume, ventricles and brain: a joined line of five points of one noise over the grey scatter of all samples."}}
of_samples = {
    name: (asked[PAIRS[quantity][0]], asked[PAIRS[quantity][1]])
    for name, quantity in {"ventricles": "ventricles", "brain": "brain volume"}.items()
}
widgets.knobs(pipeline, base, of_samples, answers)

# %% [markdown]
# The grey points are many people, your line is one. Where the line is as steep as the cloud but lies beside it, the noise
# has a volume of its own that every request of this person carries along.
#
# Whether only what was asked to move has moved cannot be seen at a glance. That is the next question.
#
# ## Cross-talk: which dials move with which knob?
#
# Move one covariate from its 16 % to its 84 % quantile, or from F to M, keep the rest and the noise, and measure
# **everything**. To compare years with millilitres, both sides are divided by the standard deviation of the quantity in
# the cohort. Averaged over three noises, entry $(i, j)$ is
#
# ```{math}
# :label: eq-cross-talk
# M_{ij} = \frac{\Delta\, \text{measured}_j \,/\, s_j}{\Delta\, \text{requested}_i \,/\, s_i},
# \qquad \text{all other requests and the noise fixed.}
# ```
#
# Perfect control is a diagonal of ones among zeros. What stands for sex is the size of the head.

# %%
DIALS = {
    "measured_intracranial_ml": "head size",
    "measured_age_years": "age read",
    "measured_lateral_ventricles_ml": "ventricles",
    "measured_brain_volume_ml": "brain",
}
moved = sweeps.cross_talk_requests(base, train)
_, talk = sweeps.draw(pipeline, moved, noises=[0, 1, 2], seed=run.seed, age=read_age)
spreads = {column: train[column].astype(float).std() for column, _ in PAIRS.values()}
spreads |= {measured: spreads[column] for column, measured in PAIRS.values()}
spreads |= {
    "sex": 1.0,
    "measured_intracranial_ml": learned["measured_intracranial_ml"].std(),
}
matrix, error = interventions.cross_talk(talk, list(DIALS), spreads)

# %% [markdown]
# Rows are knobs, columns are dials. The numbers after ± are standard errors over the noises.

# %% mystnb={"figure": {"caption": "Cross-talk: standard deviations that are measured (columns) for one standard deviation that is asked for (rows; for sex, the step from F to M), at fixed noise and with all other requests fixed. Mean and standard error over three noises. Perfect control would be 1 on the diagonal and 0 elsewhere; for sex the first column is what real heads differ by.", "name": "fig-cross-talk"}, "image": {"alt": "A matrix of four knobs by four dials with a number in each cell, red for positive and blue for negative ones."}}
names = {
    "sex": "sex (F to M)",
    "age_years": "age",
    "ventricular_volume_ml": "ventricles",
    "brain_volume_ml": "brain",
}
charts.heat_map(
    matrix.rename(index=names, columns=DIALS),
    error.rename(index=names, columns=DIALS),
    "measured, in standard deviations",
    "moved by one standard deviation",
)

# %% tags=["hide-input"]
heads = (
    learned["measured_intracranial_ml"].groupby(numeric(train, "sex")).mean()
    / spreads["measured_intracranial_ml"]
)
real_step = heads.get(1.0, np.nan) - heads.get(0.0, np.nan)
knob, dial, worst = interventions.off_diagonal(
    matrix.rename(index=names, columns=DIALS)
)
pages.say(
    "On the diagonal: "
    + ", ".join(
        f"{name} {pages.number(value)}"
        for name, value in zip(DIALS.values(), np.diag(matrix), strict=True)
    )
    + f". In the training cohort the heads of men are larger than those of women by {pages.number(real_step)} standard "
    f"deviations. The largest entry off the diagonal: {dial} when {knob} is moved, {pages.number(worst)}."
)

# %% [markdown]
# Not every entry off the diagonal is a fault. Age may be read from ventricles, because the age network has learned that
# they go together; then the ventricle knob moves the age dial although the model did as it was told. A ventricle dial
# that moves with the age knob is different: there the model has mixed up its requests.
#
# ## A swap: request or noise?
#
# One more way to ask who decides. Take two held-out rows that differ much, and four noises. Each noise gets both
# requests, so for any two noises we see the requests one way round and then exchanged. If the larger ventricles change
# sides with the request, they follow the request. If they stay on their side, they belong to the noise.

# %%
two = sweeps.apart(scans.rows("test"), "ventricular_volume_ml")
pairs, swapped = sweeps.draw(
    pipeline, two, noises=[0, 1, 2, 3], seed=run.seed, age=read_age
)
two

# %% [markdown]
# Columns share a noise, rows share a request.

# %% mystnb={"figure": {"caption": "Two requests (rows) answered from four noises (columns). Above each slice the requested, under it the measured volume of the lateral ventricles (ml). Axial slices through the lateral ventricles.", "name": "fig-swap"}, "image": {"alt": "Two rows of four axial slices; the second row has larger ventricles, and slices of a column share their folds."}}
parts = {"first request": swapped.head(4), "second request": swapped.tail(4)}
figures.panels(
    {
        title: pages.panel_row(pairs, part, PAIRS["ventricles"])
        for title, part in parts.items()
    }
)

# %% [markdown]
# In numbers: the share of exchanges in which the order of the two volumes followed the request, or stayed with the
# noise, and how the variance of all eight splits.

# %%
tests = {}
for quantity, (column, measured) in PAIRS.items():
    sign = float(np.sign(two[column].iloc[1] - two[column].iloc[0]))
    tests[quantity] = interventions.swap_test(
        swapped[measured].to_numpy().reshape(2, -1), sign
    )
pd.DataFrame(tests).T.round(2)

# %% [markdown]
# Four noises make six exchanges, so the shares are coarse. A quantity whose variance is the noise's would come out much
# the same whatever was asked for.
#
# ## Asking for less
#
# A profile with mask channels tells the network which entries are known, and drops some of them in training. Then a
# request may be partial, or empty. The paper's exact input has no such channels and takes whole requests only. The rows
# below go from a whole request (an old person with large ventricles) to none, with the same four noises.

# %%
high = ("age_years", "ventricular_volume_ml")
old = {column: sweeps.spread(train, column, 2, 0.1, 0.9)[1] for column in high}
partly = sweeps.partial_requests(pipeline, base | old)
less, loose = sweeps.draw(
    pipeline,
    pd.DataFrame(partly.values()),
    noises=[0, 1, 2, 3],
    seed=run.seed,
    age=read_age,
)
loose["request"] = np.repeat(list(partly), 4)

# %% [markdown]
# What is not asked for is drawn: the model fills it in with what goes with the rest.

# %% mystnb={"figure": {"caption": "Whole, partial and empty requests (rows) answered from four noises (columns). Above each slice the requested, under it the measured volume of the lateral ventricles (ml). Axial slices through the lateral ventricles.", "name": "fig-partial"}, "image": {"alt": "Rows of four axial slices, from whole requests at the top to empty ones at the bottom."}}
parts = dict(iter(loose.groupby("request", sort=False)))
figures.panels(
    {
        name: pages.panel_row(less, part, PAIRS["ventricles"])
        for name, part in parts.items()
    }
)

# %% [markdown]
# Means over the four noises, beside the training cohort's:

# %%
shown = {measured: f"{name} ({UNITS[name]})" for name, (_, measured) in PAIRS.items()}
means = loose.groupby("request", sort=False)[list(shown)].mean()
of_people = {
    measured: train[column].astype(float).mean() for column, measured in PAIRS.values()
}
everybody = pd.DataFrame(of_people, index=["training cohort"])
pd.concat([means, everybody]).rename(columns=shown).round(1)

# %% [markdown]
# Four volumes a row are an illustration, no statistic. With nothing asked for, they should scatter as people do; with
# age alone, ventricles should be larger than with nothing, because in the cohort they are.
#
# ## The scorecard
#
# All numbers of this chapter in one table, each with its interval, its ceilings, and its **null**: the same volumes
# measured against requests that were dealt out to them at random. That is what a model would reach that draws good brains
# and ignores what it is asked. First the three quantities with a unit.

# %%
card = {}
for quantity, (column, measured) in PAIRS.items():
    rows = found[quantity]
    dealt = scorecard.null(asked[column], asked[measured])
    rows = {name: rows[name] for name in ("samples", "cohort", "reconstructions")}
    rows |= {scorecard.NULL: dealt}
    card[quantity] = {
        name: scorecard.numbers(row, UNITS[quantity]) for name, row in rows.items()
    }

# %% [markdown]
# Then what belongs to age and sex alone. The null of *r beyond the volumes* deals out ages and leaves the volumes where
# they are. Age read from two volumes and no picture is what a model reaches that obeys both volumes and ignores age; it
# stands in the column of the nulls too.

# %%
past, straight = "r beyond the volumes", "r, two volumes and no picture"
years, read, given = asked["age_years"], asked["measured_age_years"], asked[VOLUMES]
for name, row in beyond.items():
    card["age"][name][past] = row
card["age"][scorecard.NULL][past] = scorecard.chance(
    years, lambda dealt: regression.partial_correlation(dealt, read, given)
)
card["age"][scorecard.NULL][straight] = scorecard.numbers(alone, "years")["r"]
dealt = scorecard.null(aged["age_years"], aged["measured_age_years"])
card["age, all else fixed"] = {
    name: scorecard.numbers(row, "years")
    for name, row in {"samples": fixed, scorecard.NULL: dealt}.items()
}

# %% [markdown]
# For sex the null of accuracy is the share of the more frequent one.

# %%
area, share = "area under ROC", "accuracy"
rules = {"volumes": (sexes, right), "features": (sexes_seen, right_seen)}
for kind, (areas, shares) in rules.items():
    rows = {name: {area: areas[name], share: shares[name]} for name in areas}
    part = card[f"sex by {kind}"] = {name: rows[name] for name in card["age"] if name in rows}
    part[scorecard.NULL] = {
        area: {"value": 0.5, "n": areas["samples"]["n"]},
        share: {"value": shares["samples"]["null"], "n": shares["samples"]["n"]},
    }
scorecard.whole(card)

# %% tags=["hide-input"]
above = scorecard.above_null(card, "samples")
pages.say(
    "The whole interval of r, or of the area under the ROC curve, lies above the null for "
    + (", ".join(above) or "nothing")
    + f" ({len(above)} of the {len(card)} parts of the table)."
    + (
        " For the rest, a model that ignores its requests could have given such a number."
        if len(above) < len(card)
        else ""
    )
)

# %% [markdown]
# Brackets of the nulls are no intervals of an estimate but the middle 95 % of 1,000 dealings; a bias has none, since it
# compares two means that no dealing changes. Where the ruler's bias is larger than all scatter, the mean error is hardly
# smaller than its null although r is high: mean error alone would not tell a model that listens from one that does not. To stand above the null shows that a request is heard, not that it is heard
# for itself: the shortcut of age is above it as well.
#
# ## Checks

# %%
assert set(asked["participant_id"]) <= set(scans.rows("test")["participant_id"])
for column, table in knobs.items():
    others = [name for name in COLUMNS if name != column]
    assert (table[others].nunique(dropna=False) == 1).all(), "one knob at a time"
assert all(row["n"] == len(asked) for row in card["age"][scorecard.NULL].values())
assert matrix.shape == (4, 4) and list(matrix.index) == list(COLUMNS)
assert list(swapped["noise"]) == [0, 1, 2, 3] * 2
assert not np.array_equal(pairs[0], pairs[1]), "another noise is another brain"
assert (
    len(loose) == 4 * len(partly)
    and ("nothing" in partly) == run.profile.diffusion.mask_channels
)

# %% [markdown]
# Where the profile says what it should reach on the simulated cohort, the samples must reach it:

# %%
reached = {"ventricles_r": ventricles, "brain_volume_r": brain, "brain_age_r": age}
for key, row in reached.items():
    assert pages.meets(run, key, row.r), f"{key}: below the profile"

# %% [markdown]
# ## What we saw
#
# - Each covariate needs a ruler, each ruler a ceiling, and each correlation an error in the unit of the thing.
# - A ruler must be tried on reconstructions before it may judge samples.
# - Volumes alone tell age. Only a sweep of age at fixed noise and volumes shows whether age is heard for itself.
# - Cross-talk tells a model that mixes up its requests from a ruler that reads one thing in another.
# - What follows the request changes sides in a swap; what belongs to the noise stays.
# - With mask channels a request may be partial; the model fills in the rest.
# - A number means little without its interval, its ceiling and its null.
#
# ## Exercises
#
# **1 (easy).** In the scorecard, the slope of the age row of the cohort is below 1 although nothing was generated. Why?
#
# ```{dropdown} Solution
# The age network minimises its error, and where a picture leaves age open the best guess lies nearer to the mean. So
# the old are read too young and the young too old: regression to the mean. The slope of the samples has to be compared
# with this one, not with 1.
# ```
#
# **2 (medium).** Suppose a model obeys both volumes perfectly and ignores age and sex. Which r would brain age reach on
# held-out requests, and which at fixed volumes?
#
# ```{dropdown} Solution
# On held-out requests about as much as the shortcut, the correlation of age with the best guess from two volumes, or
# less by the network's own error. At fixed volumes its pictures would be the same for every requested age: r would be
# undefined for one noise, and about 0 over several.
# ```
#
# **3 (hard).** {eq}`eq-cross-talk` moves one request while the others are fixed. In the cohort, the same division of
# regression slopes with nothing held fixed gives a matrix that is full. Show that for jointly Gaussian covariates its
# entries are the correlations, and say which of the two matrices an unconditional generator with perfect realism, asked
# by picking out samples with a given ventricle volume, would show.
#
# ```{dropdown} Solution
# The slope of $x_j$ on $x_i$ is $\rho_{ij} s_j / s_i$; divided by $s_j / s_i$ it is $\rho_{ij}$. Picking out samples is
# conditioning on one variable only, so everything that goes with it comes along: the full matrix. The diagonal one needs
# the others held fixed. Compare *ventricles alone* in {numref}`fig-partial` with the row of {numref}`fig-one-knob`.
# ```

# %% [markdown]
# The last cells hand this page's numbers to the results of the run.

# %%
results = {
    "brain_age_ceiling_r": found["age"]["cohort"].result(),
    "brain_age_reconstruction_r": found["age"]["reconstructions"].result(),
    "brain_age_volumes_alone_r": alone.result(note="two volumes, no picture"),
    "sex_separation": sexes["samples"],
    "sex_separation_ceiling": sexes["cohort"],
    "sex_by_features": sexes_seen["samples"],
    "sex_by_features_ceiling": sexes_seen["cohort"],
    "brain_age_beyond_volumes_r": beyond["samples"],
    "brain_age_beyond_volumes_ceiling_r": beyond["cohort"],
}

# %% [markdown]
# Then accuracy with its null, and r with errors and slope of each covariate:

# %%
for name, key in {"samples": "sex_accuracy", "cohort": "sex_accuracy_ceiling"}.items():
    row = dict(right[name])
    results[key] = row | {"note": f"the more frequent sex: {row.pop('null'):.2f}"}
key, note = "brain_age_fixed_volumes", "age alone moved"
results |= conditioning.result_rows(key, fixed, "years", note=note)
for (key, row), unit in zip(reached.items(), UNITS.values(), strict=True):
    floor = pages.expected(run, key)
    results |= conditioning.result_rows(key.removesuffix("_r"), row, unit, **floor)
finish_notebook(run, "05_conditioning", pages.finite(results))
