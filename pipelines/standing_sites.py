"""Sites that send the global model back at once, so that a process holds a server and little else.

They agree, sign and answer as real ones do, but have no patients, no ledger and keep no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from medfl.config import SiteConfig, StudyConfig
from medfl.privacy.accounting.planner import plan_site
from medfl.protocol.keys import SiteKeys
from medfl.protocol.messages import (
    FINISH,
    Declaration,
    Finished,
    FinishTask,
    Proposal,
    SiteUpdate,
    TrainTask,
    read_body,
    read_weights,
    to_record,
    weights_digest,
)


def standing_sites(study: StudyConfig, sites: Sequence[SiteConfig], *, folder: Path) -> ClientApp:
    """The app of all of them; a node's partition is its place among the sites.

    Args:
        study: What they agree to.
        sites: The sites, equal but for their names.
        folder: Where their keys go.
    """
    keys = [SiteKeys.create(folder / site.name) for site in sites]
    plan = plan_site(study, sites[0])
    app = ClientApp()

    @app.query()
    def declare(message: Message, context: Context) -> Message:
        number = int(context.node_config["partition-id"])
        site, own = sites[number], keys[number]
        declaration = Declaration(
            site=site.name,
            run=read_body(message.content, Proposal).run,
            run_steps=0,
            event_key=own.event_key,
            rotations=own.rotations,
            purpose="hospital",  # which is not asked for scores
            declared_patients=site.declared_patients,
            weight=site.weight,
            modalities=site.data.modalities,
            label_scheme=site.data.label_scheme,
            delta=site.privacy.delta,
            epsilon_budget=site.privacy.epsilon,
            epsilon=site.privacy.epsilon,
            mechanism=plan.mechanism,
            ledger_sequence=1,
            ledger_hash=f"{1:064x}",
        )
        return Message(to_record(declaration.signed(own)), reply_to=message)

    @app.train()
    def answer(message: Message, context: Context) -> Message:
        number = int(context.node_config["partition-id"])
        task, weights = read_body(message.content, TrainTask), read_weights(message.content)
        sequence = 2 * task.round
        update = SiteUpdate(
            site=sites[number].name,
            run=task.run,
            round=task.round,
            run_steps=task.round * task.mechanism.local_steps,
            weights_digest=weights_digest(weights),
            message_id=task.message_id,
            mechanism=task.mechanism,
            steps=task.mechanism.local_steps,
            ledger_sequence=sequence,
            ledger_hash=f"{sequence:064x}",
        )
        return Message(to_record(update.signed(keys[number]), weights=weights), reply_to=message)

    @app.query(FINISH.removeprefix("query."))
    def keep(message: Message, context: Context) -> Message:
        name = sites[int(context.node_config["partition-id"])].name
        run = read_body(message.content, FinishTask).run
        return Message(to_record(Finished(site=name, run=run)), reply_to=message)

    return app
