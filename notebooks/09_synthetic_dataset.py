# %% [markdown]
# # A public set of synthetic brains
#
# **Promise.** You open a set of generated brains as its users will, cut its making into pieces that give the same bytes in
# any order, damage a copy, see every damage found and mended, and work out what a hundred thousand volumes take.
#
# **Goals.** After this chapter you can
#
# 1. say what a data set of brains that nobody has must tell about itself;
# 2. explain why a volume depends on its number and not on the machine that happened to draw it;
# 3. check a set that somebody gave you, file by file and number by number, and make again what is damaged;
# 4. work out time and storage of a large set from a small one, and spread its making over a cluster.
#
# The paper releases 100,000 volumes with the age, sex and volumes that were asked for {cite}`pinaya2022`. What use such a
# set is, is the last of its five questions. You need chapter 3 for the model and chapter 4 for the sampler.

# %% tags=["parameters"]
profile: str = "tiny"  # sizes and settings: smoke, tiny, demo or paper
cohort: str = "atlas"  # simulated brains, or the name of a prepared BIDS folder
seed: int = 0  # of the training
runs: str = "runs"  # folder of all runs

# %% [markdown]
# The module `release` draws such sets, `release_check` reads them again, `release_repair` mends them and `release_plan`
# works out what a large one takes.

# %%
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from brainldm_core import charts, figures, pages, release, release_plan, release_run
from brainldm_core.conditioning import agreement
from brainldm_core.covariates import COLUMNS
from brainldm_core.dataset import load_cohort
from brainldm_core.records import read_json
from brainldm_core.release_check import BIDS, SUMS, TABLES, verify_release
from brainldm_core.release_repair import repair_release
from brainldm_core.runner import finish_notebook
from brainldm_core.samples import volume_name
from brainldm_core.sampling import load_pipeline

# %% [markdown]
# Every run has a set of its own, the paper's in miniature. It is drawn in shards, finished and verified once; after that
# the call below only reads its record.

# %%
run = pages.begin(profile, cohort, seed, runs)
scans = load_cohort(run.stage("cohort"))
known = scans.rows("train")
record = release_run.release_stage(run)
made, out = record["results"], release_run.find_release(run.stage("release"))
pages.banner(run, "autoencoder", "diffusion", "release", subjects=len(known))

# %% tags=["hide-input"]
pages.caution(len(known))

# %% [markdown]
# ## What is in the set
#
# The folder follows BIDS {cite}`gorgolewski2016`, as the paper's does, so that any tool for brain images can read it:
#
# ```text
# SHA256SUMS, VOXELS.sha256                   checksums of all files, and of volumes before compression
# requests.tsv                                what was asked for
# record.json                                 what the set was made from
# bids/README, LICENSE                        what this is, in words, and under which terms
# bids/dataset_description.json               name, makers, software, sources
# bids/participants.tsv, .json                a row a volume; what the columns mean
# bids/T1w.json                               what is true of all volumes
# bids/sub-000001/anat/sub-000001_T1w.nii.gz
# bids/sub-000002/anat/...
# ```
#
# To BIDS this is a *derivative*, computed from other data by software that it names. No scanner has acquired it, so that
# there is no echo time to give. Its own validator finds nothing to complain of; a test of the project asks it.
#
# A file beside each volume would say the same thing each time. BIDS lets volumes inherit from one file above them, so what
# is shared lies in `T1w.json` once, and what differs is a row of the table.

# %%
volumes, table = release_run.read_release(out)
_, _, sidecar, description, *_, people = (out / BIDS / name for name in TABLES)
shared = read_json(sidecar)
pd.Series({key: str(value) for key, value in shared.items()}).to_frame("all volumes")

# %% [markdown]
# The first words are the most important ones: *synthetic*, and *of no person*. The rest is what it takes to draw the same
# volumes again: the hashes of both networks, the sampler, its steps, the seed, the size of a batch and the precision.

# %% [markdown]
# The table has two kinds of columns. Those without a prefix were **asked for**; those that begin with `measured_` were
# **measured** in the finished volume, from its intensities alone (chapter 1). The paper's table has the first kind only.

# %%
table.head(4).round(1).T

# %% [markdown]
# And here they are: the first volumes of the set.

# %% mystnb={"figure": {"caption": "The first volumes of the release, one axial slice each, through the lateral ventricles. Above each slice: requested sex, age (years) and ventricular volume (ml). R marks the person's right.", "name": "fig-release"}, "image": {"alt": "A grid of generated axial slices of brains with ventricles of different sizes."}}
first = table.head(16)
figures.montage(
    volumes[:16],
    [f"{row.sex} {row.age_years:.0f}\n{row.ventricular_volume_ml:.0f} ml" for row in first.itertuples()],
)

# %% [markdown]
# ## Who is asked for
#
# Covariates hang together: old people have larger ventricles and smaller brains, and a set in which they were drawn one
# by one would be full of people who do not exist. This release requests **whole rows** of the training cohort, drawn with
# replacement, as the paper did for its table 1. The description of the set says so, because there is another way: weights
# that travel without their cohort request people from the joint statistics of a population.

# %% mystnb={"figure": {"caption": "Covariates of the training cohort and covariates requested by the release. Same rows, drawn with replacement: the outlines should agree up to chance.", "name": "fig-release-requests"}, "image": {"alt": "Three histograms of age, ventricular volume and brain volume; the outlines of training cohort and release nearly coincide."}}
both = pd.concat([known.assign(set="training cohort"), table.assign(set="release")])
titles = {
    "age_years": "age (years)",
    "ventricular_volume_ml": "ventricles (ml)",
    "brain_volume_ml": "brain (ml)",
}
charts.distributions(both, titles, group="set")

# %% tags=["hide-input"]
different = len(table[list(COLUMNS)].drop_duplicates())
women = {name: float((part["sex"] == "F").mean()) for name, part in {"training": known, "release": table}.items()}
pages.say(
    f"The {len(table)} volumes ask for {different} different rows of the {len(known)} in the training cohort. "
    f"{100 * women['release']:.0f} % of the release are women, {100 * women['training']:.0f} % of the training cohort. Mean age is "
    f"{table['age_years'].mean():.1f} years in the release and {known['age_years'].mean():.1f} in the training cohort."
)

# %% [markdown]
# One consequence deserves a thought. If a model copied its training brains, a set that requests their very rows would be
# where it shows. Chapter 10 looks.
#
# ## Does a volume have what was asked for?
#
# Users will take the columns of the table for properties of the volumes. So we hold them against what is measured.

# %% mystnb={"figure": {"caption": "Every volume of the release: requested and measured volume (ml) of the lateral ventricles (left) and of the brain, normalised for head size (right). Dashed: identity; solid: least squares; titles: Pearson's r with 95 % bootstrap interval.", "name": "fig-release-measured"}, "image": {"alt": "Two scatter plots of measured against requested volume with the line of identity."}}
pairs = {
    "ventricles (ml)": ("ventricular_volume_ml", "measured_lateral_ventricles_ml"),
    "brain (ml)": ("brain_volume_ml", "measured_brain_volume_ml"),
}
found = {name: agreement(table[a], table[b]) for name, (a, b) in pairs.items()}
charts.two_scatters(
    {name: (table[a], table[b], found[name].note()) for name, (a, b) in pairs.items()},
    "requested",
    "measured",
)

# %% tags=["hide-input"]
ventricles, brain = found["ventricles (ml)"], found["brain (ml)"]
pages.say(
    f"Ventricles: {ventricles.note()}, mean error {ventricles.mae:.1f} ml, bias {ventricles.bias:+.1f} ml. "
    f"{ventricles.response()} Brain: {brain.note()}, mean error {brain.mae:.0f} ml, bias {brain.bias:+.0f} ml. "
    f"{brain.response()}"
)

# %% [markdown]
# These requests are rows that training has seen, in combinations that it knows; chapter 3 has the same measurement for
# held-out rows. Whoever needs the volume of a structure should take the measured column. Whoever needs a label that no
# measurement has touched should take the requested one, and know its error.
#
# ## A volume is its number
#
# A set of a hundred thousand is drawn by many processes, and some of them die. Two rules make that harmless. The noise of a
# volume comes from the seed and from the volume's **own number**, never from what was drawn before it. And numbers are
# grouped into batches once for all; a shard is every so-manyth batch, so the neighbours of a volume in its batch are always
# the same. We try it with a handful: once in one piece, once in two pieces, the second piece first.

# %%
pipeline = load_pipeline(run.folder)
handful = release.draw_requests(known, 2 * shared["BatchSize"] - 1, run.seed)
place = tempfile.TemporaryDirectory()
whole, parts = Path(place.name, "whole"), Path(place.name, "parts")
release.release_shard(pipeline, handful, whole, steps=2, progress=False)
for shard in (2, 1):
    release.release_shard(pipeline, handful, parts, shard, 2, steps=2, progress=False)
for folder in (whole, parts):
    release.finish_release(folder)
sums = [(folder / SUMS).read_text() for folder in (whole, parts)]

# %% tags=["hide-input"]
pages.say(
    f"{len(handful)} volumes, {len(sums[0].splitlines())} files. The checksums of the set drawn in one piece and of the set "
    f"drawn in two are **{'the same, line by line' if sums[0] == sums[1] else 'different'}**."
)

# %% [markdown]
# That holds on one kind of processor with one number of threads. Elsewhere sums are rounded in another order, and a volume
# may differ by one of its 255 grey levels here and there; the record names every kind of machine that took part.
#
# A process that dies leaves at most one batch undone. What it was writing has another name until it is whole, and its
# claim on the batch goes with it. Two processes that were given the same piece by mistake share it.
#
# ## Trust, and check
#
# Copies get damaged, and tables get edited. `brainldm release verify` reads a set again: every checksum, files that are
# missing or do not belong, the requests, the format and place of every volume, twins, and the measurements, made anew. We
# damage a copy of the handful in three ways: one bit of a volume is flipped, two volumes change places, and somebody gets
# older.

# %%
damaged = shutil.copytree(whole, Path(place.name, "damaged"))
flipped, one, two = (damaged / BIDS / volume_name(identity) for identity in (1, 2, 3))
content = bytearray(flipped.read_bytes())
content[len(content) // 2] ^= 1
flipped.write_bytes(content)
swapped = one.read_bytes(), two.read_bytes()
one.write_bytes(swapped[1])
two.write_bytes(swapped[0])
people = damaged / BIDS / people.name
rows = pd.read_csv(people, sep="\t", dtype=str)
rows.loc[0, "age_years"] = f"{float(rows.loc[0, 'age_years']) + 1:g}"
rows.to_csv(people, sep="\t", index=False)

# %% [markdown]
# What the check says of the copy, and of the set that it was copied from:

# %%
problems = {folder.name: verify_release(folder) for folder in (whole, damaged)}
rows = [line.split(": ", 1) for line in problems["damaged"]]
pages.say(
    "| file | what is wrong |\n|:--|:--|\n" + "\n".join(f"| `{Path(file).name}` | {wrong} |" for file, wrong in rows)
)

# %% tags=["hide-input"]
pages.say(
    f"{len(problems['damaged'])} problems in the damaged copy, {len(problems['whole'])} in the set it was copied from. The "
    f"release of this run was verified when it was made: {made['problems']} problems in {made['volumes']:,} volumes, found "
    f"in {made['seconds_to_verify']:g} s."
)

# %% [markdown]
# Checksums alone would do against accidents. Against somebody who edits a volume and renews the checksums they do not, and
# that is why the requests are hashed in the record and the volumes are measured again.
#
# Since a volume is its number, whoever has the weights can make a damaged one again. `brainldm release verify --repair`
# draws its batch anew and accepts the result only if it is what the checksums say.

# %%
mended = repair_release(damaged, pipeline)
problems["repaired"] = verify_release(damaged)
restored = (damaged / SUMS).read_text() == sums[0]

# %% tags=["hide-input"]
pages.say(
    f"{len(mended)} files were made again. After that the check finds {len(problems['repaired'])} problems, and the checksums are "
    f"**{'those of the set before it was damaged' if restored else 'others than before'}**."
)

# %% [markdown]
# On a machine whose voxels come out otherwise nothing is replaced: the command says so, and where the set was made. A file
# that is not the set's own is named and left alone.
#
# ## From here to a hundred thousand
#
# Each volume is drawn on its own, so time and storage grow with their number. First the time, on a cluster that runs
# Slurm, as one array of 64 jobs. Shards are counted from 1:
#
# ```bash
# #!/bin/bash
# #SBATCH --array=1-64
# #SBATCH --cpus-per-task=2
# srun brainldm release --weights runs/tiny-atlas --n 100000 \
#   --shard "$SLURM_ARRAY_TASK_ID/64" --out synthetic_brains
# ```
#
# Whichever job is the last to come writes the tables and checksums. A job that was killed is started again with the same
# line and goes on where it was. If all jobs are through and the set is not finished, `brainldm release finish
# synthetic_brains` says how many batches are missing. `brainldm release verify synthetic_brains` ends with exit code 1 if
# anything is wrong.

# %%
PAPER, SHARDS = 100_000, 64
batch = shared["BatchSize"]
batches = -(-PAPER // batch)
largest = min(-(-batches // SHARDS) * batch, PAPER)
each, size = made["seconds_a_volume"], made["bytes"] / made["volumes"]
voxels = int(np.prod(run.profile.grid.shape))
days, longest = PAPER * each / 86400, largest * each / 3600
checking = PAPER * made["seconds_to_verify"] / made["volumes"] / 3600

# %% tags=["hide-input"]
pages.say(
    f"One volume took {each:.2f} s with {shared['Steps']} steps, measuring and writing included, on "
    f"{pages.machine(record['hardware'])}. So {PAPER:,} volumes take {PAPER:,} × {each:.2f} s = {days:.1f} days in one "
    f"process. {PAPER:,} volumes are {batches:,} batches of {batch}; of {SHARDS} shards the largest has {largest:,} volumes, "
    f"and on {SHARDS} such machines at once the set is drawn in {longest:.1f} hours. Reading it all again takes one process "
    f"{checking:.1f} hours."
)

# %% [markdown]
# Volumes of this run are small. What would the paper's take, 160 × 224 × 160 voxels of 1 mm? No such model was trained here,
# but much of the answer does not need one: the work of a step can be counted, and a file of that size can be compressed,
# measured and read. Each line of the table says whether it was measured, only counted, or not measured at all.
# `brainldm release plan` prints the same for any number of volumes.

# %% tags=["hide-input"]
plan = release_plan.plan_rows(PAPER, record=record)
pages.say(release_plan.markdown_table(plan))

# %% [markdown]
# Two lines deserve a look. Counted work is a floor, since no card keeps up the speed that it is divided by. And the hours for
# measuring can be more than those for drawing: on a card, volumes come faster than one core can measure them. That is why
# writers are processes of their own beside the one that draws (`--workers`), and the table says how many would keep up.
#
# Then the storage. Voxels are kept in 255 steps of grey, one byte before compression; a finer scale would store the noise
# of half-precision arithmetic.

# %% tags=["hide-input"]
paper_voxels = 160 * 224 * 160
pages.say(
    f"A volume of {voxels:,} voxels has {size / 1000:.1f} kB on the disk, {8 * size / voxels:.1f} bits a voxel. {PAPER:,} such "
    f"volumes have {PAPER * size / 1e9:.2f} GB. On the paper's grid of 160 × 224 × 160 voxels a volume has {paper_voxels:,} bytes "
    f"before compression, so {PAPER:,} have {PAPER * paper_voxels / 1e9:.0f} GB. The line of the table for storage at 1 mm is "
    "of one volume, an average brain with a little grain, and drawn ones may be smoother or rougher."
)

# %% [markdown]
# ## What it may be used for
#
# A set of brains must say under which terms it may be used, and that depends on what the model has learned from. The
# command that makes it reads the cohort's manifest: from scans of restricted access it makes a set that says on its front
# page that it is not to be given away.

# %% tags=["hide-input"]
terms = read_json(description)
pages.say(
    f"This set is called *{terms['Name']}*. Licence: **{terms['License']}**. Requests: {terms['BrainLDM']['Requests']}."
)

# %% [markdown]
# So what use is it? A set like this lends itself to teaching and to testing software, to comparing measurements against
# requests that are known, and to filling up rare combinations of age and volume before a training. It cannot show
# anything about brains that was not in its training cohort, or that the model has missed: a finding in it is a finding
# about the model. And whether it is safe to give away is a question of its own, which the next chapter puts.
#
# ## Checks

# %%
assert len(table) == len(volumes) == made["volumes"] == run.profile.release.volumes
assert made["problems"] == 0 and problems["whole"] == []
assert 0 <= volumes.min() and volumes.max() <= 1
assert sums[0] == sums[1], "shards must not change a byte"
assert restored and problems["repaired"] == [], "a repaired set is what it was"
rows_asked = table[list(COLUMNS)].round(6).merge(known[list(COLUMNS)].round(6).drop_duplicates())
assert len(rows_asked) == len(table), "requests are whole rows of the training cohort"

# %% [markdown]
# Each of the three damages must be among the problems, by the file that it touched:

# %%
for path in (flipped, one, two, people):
    assert any(str(path) in line for line in problems["damaged"]), path.name
place.cleanup()

# %% [markdown]
# ## What we saw
#
# - A released set says that it is synthetic, what it was drawn with, and where its requests come from.
# - Noise that belongs to a volume's number, and batches that are fixed, make shards, order and restarts invisible, and
#   let whoever has the weights mend a damaged copy.
# - A requested covariate is a label with an error. The set brings the measurement along.
# - Time and storage are products of numbers that a small set measures.
#
# ## Exercises
#
# **1 (easy).** How many volumes of the release have measured ventricles of more than 40 ml? How many were asked to?
#
# ```{dropdown} Solution
#     (table["measured_lateral_ventricles_ml"] > 40).sum(), (table["ventricular_volume_ml"] > 40).sum()
#
# If the response of the model is below one, the first number is smaller.
# ```
#
# **2 (medium).** Somebody wants to extend the set from 100,000 to 200,000 volumes next year. Which volumes change?
#
# ```{dropdown} Solution
# Volumes 1 to 100,000 keep their requests, because the first rows of a longer list of draws are those of the shorter one,
# and their noise, because it comes from seed and number. Their batches are the same too if 100,000 is a multiple of the
# size of a batch. Then no byte changes. If it is not, the last batch was padded and now has other neighbours, so its
# volumes may change by a grey level here and there.
# ```
#
# **3 (hard).** A user trains a classifier of sex on the release and tests it on real scans. Before believing its accuracy,
# what should be compared, and with what?
#
# ```{dropdown} Solution
# The same classifier trained on as many real training scans and tested on the same scans gives the ceiling. One trained on
# brains from a model that ignores sex, with shuffled labels, gives the floor. Since requested sex comes with typical head
# size and ventricles, one must also ask what a classifier gains that sees those volumes only: the model may have put
# nothing else of sex into its brains.
# ```

# %% [markdown]
# The last cell hands this page's numbers to the results of the run.

# %%
count = made["volumes"]
results = {
    "volumes": {"value": count, "n": count},
    "problems_found": {"value": made["problems"], "n": count},
    "seconds_a_volume": {"value": each, "unit": "s", "n": count},
    "bytes_a_volume": {"value": round(size), "unit": "bytes", "n": count},
    "release_ventricles_r": ventricles.result(),
    "release_ventricles_mae": {"value": round(ventricles.mae, 2), "unit": "ml", "n": count},
    "release_brain_r": brain.result(),
}
finish_notebook(run, "09_synthetic_dataset", pages.finite(results))
