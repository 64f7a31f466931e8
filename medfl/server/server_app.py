"""The ServerApp: agree on a plan, then rounds of train, admit, aggregate, record.

A loop of our own on Flower's Message API: it has a quorum, deadlines, a checkpoint after every
round and a federation ledger, and it goes on when a site fails.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from medfl.errors import MedflError, QuorumError
from medfl.protocol.messages import (
    Declaration,
    EvaluateTask,
    Scores,
    SiteUpdate,
    TrainTask,
    Weights,
    read_body,
    read_weights,
    to_arrays,
    to_record,
    weights_digest,
)
from medfl.protocol.secure_round import Members, round_terms
from medfl.protocol.study_model import study_model_bytes, trained_parameters
from medfl.runs.files import UNDELIVERED, WAITING
from medfl.runs.records import Outcome, Round, SiteRound
from medfl.runs.waiting import Waiting
from medfl.server.agreement import agree, content_of
from medfl.server.ask import answers, discard
from medfl.server.handover import HANDOVER_SECONDS, hand_over
from medfl.server.ledger import FederationLedger
from medfl.server.roll_call import RollCall
from medfl.server.run import Run
from medfl.server.run_folder import ROSTER, SUM_ROUND, ServerState
from medfl.server.secure_agreement import agree_on_roster, roster_of
from medfl.server.secure_round import SecureRound, SecureTotal
from medfl.server.spool import Spool
from medfl.server.strategy import Aggregator, admit, exponential_average


def make_server_app(run: Run) -> ServerApp:
    """The app that runs a study."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        serve_study(grid, run)

    return app


def serve_study(grid: Grid, run: Run) -> None:
    """Run a study to its end, from its last checkpoint where there is one.

    Raises:
        QuorumError: If too few sites are usable; what was done stays in the run folder.
        FederationError: If the run folder is damaged.
    """
    study, folder = run.study, run.folder
    state = folder.read_state(study=study)
    folder.forget_round()  # an interrupted one is asked again
    ledger = FederationLedger(folder)
    with RollCall(run, first_round=1 + (state.round if state else 0)) as roll:
        declarations, nodes = agree(grid, run, ledger=ledger, roll=roll)
        roster: Members = {}
        if study.privacy.trust == "secure":
            roster = folder.roster() or roster_of(declarations)
            folder.write(ROSTER, roster)
            declarations = agree_on_roster(
                grid,
                run,
                declarations=declarations,
                nodes=nodes,
                roster=roster,
                ledger=ledger,
                roll=roll,
            )
            nodes = {site: nodes[site] for site in declarations}
    run.progress.planned(list(declarations.values()), rounds=study.training.rounds)
    run.progress.left_out(roll.absent)
    server = _Server(
        grid=grid, run=run, declarations=declarations, nodes=nodes, ledger=ledger, roster=roster
    )
    if state is None:
        weights = run.start()
        state = ServerState(run=run.run, round=0, weights=weights, average=weights, moments={})
        folder.write_checkpoint("initial", server.model_file(state))
        server.score(state)
        folder.write_state(state, study=study)
    folder.truncate_tables(after_round=state.round, variant=run.variant)
    server.aggregator.restore(state.moments)
    run.progress.phase("rounds")
    void = folder.begun_sum()
    for number in range(state.round + 1, study.training.rounds + 1):
        # A site never begins a round of a secure sum twice: one that was interrupted is void.
        state = server.void(state, number) if number <= void else server.round(state, number)
        if number % study.evaluation.every == 0 or number == study.training.rounds:
            folder.write_checkpoint(f"round-{number:04d}", server.model_file(state))
            server.score(state)
        folder.write_state(state, study=study)
    folder.write_checkpoint("final", server.model_file(state))
    server.hand_over(state)


class _Server:
    """One run's sites, and what the server does with them."""

    def __init__(
        self,
        *,
        grid: Grid,
        run: Run,
        declarations: Mapping[str, Declaration],
        nodes: Mapping[str, int],
        ledger: FederationLedger,
        roster: Members,
    ) -> None:
        self._grid = grid
        self._run = run
        self._declarations = declarations
        self._nodes = nodes
        self._ledger = ledger
        self._roster = roster
        self._trained = trained_parameters(run.study)
        self.aggregator = Aggregator(run.study)

    def round(self, state: ServerState, number: int) -> ServerState:
        """Train, admit, aggregate, record."""
        try:
            return self._round(state, number)
        finally:
            self._run.folder.forget_round()

    def void(self, state: ServerState, number: int) -> ServerState:
        """Pass over a round that was begun and ended without a sum; what it cost stays charged."""
        record = Round(
            round=number,
            seconds=0.0,
            sites={
                site: self._outcome(site, "rejected", code="secure-sum-void")
                for site in self._nodes
            },
        )
        self._run.folder.append_round(record)
        self._run.progress.round_finished(record)
        return replace(state, round=number)

    def _round(self, state: ServerState, number: int) -> ServerState:
        begin = time.monotonic()
        study, run = self._run.study, self._run
        updates: Mapping[str, ArrayRecord]
        if self._roster:
            updates, outcomes = self._collect_sum(state, number)
            weights = dict.fromkeys(updates, 1.0)
        else:
            spool = Spool(run.folder.updates(number))
            outcomes = self._collect(state, number, spool=spool)
            updates = spool.updates
            weights = {site: d.weight for site, d in self._declarations.items()}
        _require_quorum(outcomes, needed=study.aggregation.min_sites, number=number)
        new = self.aggregator.aggregate(
            updates,
            start=self._trained_of(state.weights),
            site_weights=weights,
            round_number=number,
        )
        average = exponential_average(
            self._trained_of(state.average),
            new,
            decay=study.aggregation.ema_decay,
            round_number=number,
        )
        record = Round(round=number, seconds=time.monotonic() - begin, sites=outcomes)
        run.folder.append_round(record)
        run.progress.round_finished(record)
        return ServerState(
            run=run.run,
            round=number,
            # What is not trained keeps its very bits.
            weights={**state.weights, **new},
            average={**state.average, **average},
            moments=self.aggregator.state(),
        )

    def _trained_of(self, weights: Weights) -> Weights:
        return {name: value for name, value in weights.items() if name in self._trained}

    def _collect(self, state: ServerState, number: int, *, spool: Spool) -> dict[str, SiteRound]:
        """Ask every site; each answer is screened, recorded and put away before the next one."""
        tasks = {site: self._task(site, number) for site in self._nodes}
        waiting = self._begin_waiting(number, asked=tasks)
        outcomes: dict[str, SiteRound] = {}
        questions = _questions(tasks, weights=state.weights)
        start = self._trained_of(state.weights)
        for site, reply in self._answers(questions, kind="train", group=str(number)):
            weights, outcomes[site] = self._receive(reply, tasks[site], start=start, site=site)
            discard(reply)
            if weights is not None:
                spool.put(site, weights)
            waiting = waiting.heard(site)
            self._run.folder.write(WAITING, waiting)
        for site, task in tasks.items():
            if site not in outcomes:
                outcomes[site] = self._lost(site, "silent", task, code="silent")
        return {site: outcomes[site] for site in tasks}

    def _collect_sum(
        self, state: ServerState, number: int
    ) -> tuple[dict[str, ArrayRecord], dict[str, SiteRound]]:
        """Learn the sum of all sites, and what the round was for each of them."""
        study, start = self._run.study, self._trained_of(state.weights)
        tasks = {site: self._task(site, number) for site in self._nodes}
        terms = round_terms(
            study,
            run=self._run.run,
            round_number=number,
            members=self._roster,
            mechanism=next(iter(tasks.values())).mechanism,
            model_digest=weights_digest(state.weights),
            length=sum(value.numel() for value in start.values()),
        )
        self._run.folder.write(SUM_ROUND, number)
        found = SecureRound(terms, tasks=tasks, ask=self._asked, check=self._ledger.check).collect(
            state.weights
        )
        outcomes = {site: self._outcome_in(found, site, task) for site, task in tasks.items()}
        new = found.moved(start, study=study, tasks=tasks, members=self._roster)
        return ({"sum": to_arrays(new)} if new else {}), outcomes

    def _asked(
        self, questions: Mapping[str, RecordDict], *, kind: str, group: str, phase: str
    ) -> Iterator[tuple[str, Message]]:
        """Answers of one phase of a round, with a note of who is waited for."""
        waiting = self._begin_waiting(int(group), asked=questions, phase=phase)
        for site, reply in self._answers(questions, kind=kind, group=group):
            yield site, reply
            waiting = waiting.heard(site)
            self._run.folder.write(WAITING, waiting)

    def _begin_waiting(self, number: int, *, asked: Iterable[str], phase: str = "") -> Waiting:
        own, others = self._run.own_timeout, self._run.others_timeout
        waiting = Waiting.begin(
            number, asked=asked, timeout=own + others, phase=phase, others=others
        )
        self._run.folder.write(WAITING, waiting)
        return waiting

    def _outcome_in(self, found: SecureTotal, site: str, task: TrainTask) -> SiteRound:
        outcome, code = found.outcome(site)
        update = found.updates.get(site)
        if update is None and site in found.charged:
            return self._lost(site, outcome, task, code=code)
        if update is None:  # nothing is presumed of a site that was asked for no step
            return self._outcome(site, outcome, code=code)
        in_it = outcome == "admitted"
        self._ledger.record(update, site=site, round_number=task.round, admitted=in_it)
        return self._outcome(site, outcome, code=code, steps=update.steps)

    def score(self, state: ServerState) -> None:
        """Ask sites with open data for scores; hospitals share none and are not asked."""
        study = self._run.study
        task = EvaluateTask(
            study=study,
            round=state.round,
            distances=state.round in (0, study.training.rounds),
        )
        question = to_record(task, weights=state.average)
        asked = [site for site, d in self._declarations.items() if d.purpose == "open-data"]
        questions = dict.fromkeys(asked, question)
        scores = {}
        for site, reply in self._answers(questions, kind="evaluate", group=str(state.round)):
            try:
                answer = read_body(content_of(reply), Scores)
            except MedflError:
                continue
            if answer.site == site:
                scores[site] = answer
        in_order = [scores[site] for site in asked if site in scores]
        self._run.folder.append_scores(
            in_order, variant=self._run.variant, round_number=state.round
        )
        self._run.progress.scored(state.round, in_order)

    def hand_over(self, state: ServerState) -> None:
        """Send the final model to the hospitals; a run is finished without those who miss it."""
        undelivered = hand_over(
            state.average,
            study=self._run.study,
            run=self._run.run,
            grid=self._grid,
            declarations=self._declarations,
            nodes=self._nodes,
            timeout=min(self._run.own_timeout, HANDOVER_SECONDS) + self._run.others_timeout,
        )
        self._run.folder.write(UNDELIVERED, undelivered)

    def model_file(self, state: ServerState) -> bytes:
        """The averaged model after a round, as a file."""
        return study_model_bytes(
            state.average,
            study=self._run.study,
            round_number=state.round,
            declarations=self._declarations,
        )

    def _task(self, site: str, number: int) -> TrainTask:
        return TrainTask(
            study=self._run.study,
            run=self._run.run,
            round=number,
            message_id=f"{self._run.run}/{number}/{site}",
            mechanism=self._declarations[site].mechanism.in_round(number),
        )

    def _answers(
        self, questions: Mapping[str, RecordDict], *, kind: str, group: str
    ) -> Iterator[tuple[str, Message]]:
        """Site and answer, in the order in which they come."""
        sites = {self._nodes[site]: site for site in questions}
        found = answers(
            self._grid,
            {node: questions[site] for node, site in sites.items()},
            kind=kind,
            group=group,
            timeout=self._run.timeout,
        )
        return ((sites[node], reply) for node, reply in found)

    def _receive(
        self, reply: Message, task: TrainTask, *, start: Weights, site: str
    ) -> tuple[Weights | None, SiteRound]:
        """Screen one answer; what the site spent counts even if it is rejected."""
        try:
            content = content_of(reply)
        except MedflError as error:
            return None, self._lost(site, "refused", task, code=error.code)
        try:
            update = read_body(content, SiteUpdate)
        except MedflError:
            return None, self._lost(site, "rejected", task, code="update-body")
        weights, code = self._screen(content, update, task, start=start, site=site)
        self._ledger.record(update, site=site, round_number=task.round, admitted=not code)
        if update.message_id != task.message_id:
            # What was asked for never came.
            self._ledger.presume(site, round_number=task.round, code=code)
        outcome: Outcome = "rejected" if code else "admitted"
        return weights, self._outcome(site, outcome, code=code, steps=update.steps)

    def _screen(
        self, content: RecordDict, update: SiteUpdate, task: TrainTask, *, start: Weights, site: str
    ) -> tuple[Weights | None, str]:
        try:
            self._ledger.check(update, site=site)
            weights = read_weights(content)
            admit(update, weights, task=task, declaration=self._declarations[site], start=start)
        except MedflError as error:
            return None, error.code
        return weights, ""

    def _lost(self, site: str, outcome: Outcome, task: TrainTask, *, code: str) -> SiteRound:
        self._ledger.presume(site, round_number=task.round, code=code)
        return self._outcome(site, outcome, code=code)

    def _outcome(self, site: str, outcome: Outcome, *, code: str, steps: int = 0) -> SiteRound:
        return SiteRound(
            outcome=outcome,
            code=code,
            epsilon=self._ledger.epsilon(site),
            budget=self._declarations[site].epsilon_budget,
            steps=steps,
        )


def _questions(tasks: Mapping[str, TrainTask], *, weights: Weights) -> dict[str, RecordDict]:
    """The tasks, with one record of the model that all of them share."""
    first = to_record(next(iter(tasks.values())), weights=weights)
    model = {name: part for name, part in first.items() if isinstance(part, ArrayRecord)}
    return {site: RecordDict({**to_record(task), **model}) for site, task in tasks.items()}


def _require_quorum(outcomes: Mapping[str, SiteRound], *, needed: int, number: int) -> None:
    admitted = sum(outcome.outcome == "admitted" for outcome in outcomes.values())
    if admitted < needed:
        problems = ", ".join(f"{site}: {o.code}" for site, o in outcomes.items() if o.code)
        raise QuorumError(
            f"Round {number}: expected at least {needed} usable updates, found {admitted} "
            f"({problems})."
        )
