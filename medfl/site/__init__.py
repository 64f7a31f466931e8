"""Everything that runs at a hospital, for those who have to review it there.

**What runs.** `client_app` receives each of the server's messages, in a process of its own. There
are four kinds: a proposal of a study, a round of training, a model to be scored, and the final
model of a run, which is kept. Whatever else comes is refused. The server sends numbers and
settings, never code: `medfl.deployment.hospital` pins the app that the installed medfl makes, and
starts, ends and logs these processes.

**What it reads.** The site's own file (`medfl.config.site`), the images that the file names, and
the state folder: privacy ledger, keys, outbox, cache (`state` is the only module that opens them)
and the models of runs (`run_models`).
Nothing is read from the server's side, and nothing is downloaded.

**When a study is proposed** (`round.declare`) the site's policy is asked first. If the study's
starting model has seen public patients and the site's own file names their list, the images of all
patients are compared with it (`seen_patients`). Only then is anything planned, admitted by the
ledger, and agreed to.

**In which order a round happens** (`round.train_update`); each step may refuse, and up to step 6
a refusal costs nothing:

1. The site's policy: noise, steps, clipping and rounds are those that the file allows
   (`medfl.privacy.policy`).
2. Paid before? The same request gets the same stored bytes again, free of charge (`outbox`).
3. Agreed? The run, its mechanism, its proposal, its patients and its steps are those of the
   agreement in the ledger, which `round.declare` wrote when the study was proposed.
4. Every patient of the run is read, no matter who will be drawn, and the largest one goes through
   the network, so that a damaged file or a lack of memory costs nothing (`training_patients`,
   `medfl.data.patient_store`).
5. Somebody still waits for the answer.
6. The ledger is charged for all steps of the round and the witness remembers whose images they
   were (`medfl.privacy.ledger`, `known_patients`). From here on nothing is ever refunded.
7. Training: patients are drawn with secret randomness, each one's gradient is clipped to the clip
   norm, and the sum gets its noise before anything else happens to it (`medfl.privacy.engine`).
8. The update is stored, durably, and entered into the ledger as released (`outbox`).
9. Where the file says so, the update rests until a whole multiple of `answer_seconds` is over.

**What leaves.** Five kinds of bodies, all of them in `medfl.protocol.messages`: two that are signed
with the site's key, a declaration (public constants, the mechanism, the state of the ledger) and an
update (the noisy weights and what they cost); scores of held-out patients (`scores`; sites with
open data only, and only if their file allows it); that the final model is here, with the names of
site and run and nothing else (`final_model`); and refusals, which are one code of a fixed list and
never a text (`medfl.protocol.failures`). One of the codes says something of patients: that one of
them is on the list of public images that the site's file names. `ledger_export` writes, by hand and
on request, the account that an auditor reads.

**What does not leave.** Images, masks, names of files and folders, identifiers, numbers of patients
other than the declared one, gradients and sums without noise, texts of errors, who was drawn, and
the hospital's own model: `adaptation` trains it without noise when somebody at the hospital asks
for it or the site's file says so, and `own_model` writes it into the state folder, marked as
staying there. No kind of message has room for it, and the process that makes it after a study
(`medfl.deployment.hospital.homework`) answers none.

`audit_log` writes down who did what and when, for an auditor, before whom `log_check` proves it.
`filling` prepares a cohort before a study, and `lost_ledger` goes on after a loss, both by hand. No
module here imports `medfl.server`, and a contract that is checked with the tests keeps it so.
"""
