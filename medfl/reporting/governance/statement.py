"""A run as an entry of the public registry of differential-privacy deployments.

Dwork, Kohli and Mulligan ("Differential Privacy in Practice: Expose your Epsilons!", Journal of
Privacy and Confidentiality 9(2), 2019) asked for a registry in which whoever relies on differential
privacy says with which parameters. Nanayakkara, Ghazi and Vadhan (arXiv 2509.13509) made a schema
for it; the registry of OpenDP, which NIST has proposed to host, takes entries as YAML files in
https://github.com/opendp/deployments-registry-data. Fields, tiers and enumerations here are those
of `schemas/deployments-schema.yaml` at commit 3e9c812a924cf01d228f26f6c462c59c391c3f2a of
15 July 2026. `registry.schema.json` states them in our own words, for checks without a network.

The registry is in English, and so is an entry. It is a draft: what no run knows is marked, and only
people submit it. A run that does not show its protection gets no privacy parameters at all.
"""

from __future__ import annotations

from typing import Any

import yaml

from medfl.reporting import wording
from medfl.reporting.governance.public_facts import PublicFacts, Tuning
from medfl.reporting.governance.words import doubt, modalities, regions
from medfl.reporting.texts import ENGLISH

FILE = "deployment_registry.yaml"

_HEAD = """\
# A draft for the registry of differential-privacy deployments, made by medfl {version}:
# https://github.com/opendp/deployments-registry-data (schema of commit 3e9c812a924c).
# It names no hospital and no size. Complete what begins with "To be completed" before you submit
# it; the registry makes the slug from name, curators and year.
"""
_WIDTH = 100

_TUNING: dict[Tuning, str] = {
    "not stated": "The study does not state what its settings were chosen on.",
    "sites": "Settings were chosen on the hospitals' patients; every run is charged to the "
    "hospitals' ledgers.",
    "public": "Settings were chosen on public patients, without privacy for these.",
    "synthetic": "Settings were chosen on synthetic patients, at no privacy loss.",
}


class _Readable(yaml.SafeDumper):  # type: ignore[misc]  # PyYAML has no types
    """Writes a text of several lines in several lines, as the registry asks for."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Readable.add_representer(str, _text)


def statement(facts: PublicFacts) -> str:
    """The entry as YAML text."""
    text = yaml.dump(
        entry(facts), Dumper=_Readable, sort_keys=False, allow_unicode=True, width=_WIDTH
    )
    return f"{_HEAD.format(version=facts.version)}{text}"


def entry(facts: PublicFacts) -> dict[str, Any]:
    """The entry as plain values."""
    deployment: dict[str, Any] = {"basic": _basic(facts)}
    if facts.found.holds:
        deployment |= {
            "dp_variant": _variant(facts),
            "privacy_loss": _loss(facts),
            "deployment_model": _model(facts),
            "accounting": _accounting(facts),
            "implementation": _implementation(facts),
        }
    deployment["administrative"] = {
        "sources": _blank("links to a publication and to the model, if it is public."),
        "notes": _notes(facts),
        "registry_authors": [_blank("who submits this entry.")],
    }
    return {
        "url_slug": "to-be-completed",
        "status": "Draft",
        "tier": 3 if facts.found.holds else 1,
        "deployment": deployment,
    }


def _blank(text: str) -> str:
    return f"To be completed: {text}"


def _basic(facts: PublicFacts) -> dict[str, Any]:
    seen = modalities(facts.modalities, ENGLISH)
    return {
        "name": _blank("public name of the model."),
        "data_curators": [_blank("who publishes the model.")],
        "intended_use": _blank("what the model is for. It is no medical device."),
        "data_product_type": "Machine learning model",
        "data_product_region": _blank("where the patients were treated, and whose law applies."),
        "description": (
            "A network that outlines brain tumours in magnetic resonance images "
            f"({regions(facts.regions, ENGLISH)}; from {seen}), trained by federated learning."
        ),
        "publication_date": facts.started.date().isoformat(),
        "data_product_sector": "Healthcare",
    }


def _variant(facts: PublicFacts) -> dict[str, Any]:
    unprotected = [
        "That a hospital takes part, when it answers, its declared number of patients and its "
        "weight in the model, all of which the participants know"
    ]
    if facts.public_start:
        unprotected.append("public images from which the first model had learnt")
    return {
        "variant_name": "Approximate DP",
        "data_domain": (
            "The training patients of each hospital, each with all images and outlines of all of "
            "the patient's examinations."
        ),
        "unprotected_quantities": "; ".join(unprotected) + ".",
    }


def _loss(facts: PublicFacts) -> dict[str, Any]:
    return {
        "privacy_unit": "Person-level",
        "privacy_unit_details": (
            "A patient with all images of all examinations. Adjacent data sets differ in that the "
            "contribution of one patient is replaced by nothing in every step (zero-out). "
            + (
                "Patients whom hospitals are declared to share are counted at all of them."
                if facts.overlaps
                else "A patient is taken to be at one hospital only."
            )
        ),
        "privacy_parameters": {
            "epsilon": float(wording.at_most(facts.epsilon).replace(",", "")),
            "delta": facts.delta,
        },
        "privacy_parameters_details": (
            "The largest over all hospitals, of the whole training, lost rounds included. Epsilon "
            "is rounded up to three digits and delta to a power of ten."
        ),
    }


def _model(facts: PublicFacts) -> dict[str, Any]:
    if facts.secure:
        others = "alone"
        if facts.colluding:
            others = f"together with up to {facts.colluding} of the other hospitals"
        trust = (
            "Each hospital clips and adds a share of the noise to what it computes; the server can "
            "read the sum over the hospitals only (secure aggregation). The parameters hold "
            f"against the server {others}."
        )
        server = "Sees the noisy sums. Not trusted with a single hospital's update."
    else:
        trust = (
            "Each hospital is trusted with its own patients, and adds all of the noise before "
            "anything leaves. The parameters hold against the server and all other hospitals."
        )
        server = "Sees each hospital's noisy update. Not trusted with anything else."
    return {
        "model_name": "Federated",
        "model_name_details": trust,
        "actors": (
            "- Hospitals: hold their patients' images, which do not leave. Trusted by their own "
            "patients only"
            + (", and by those of other hospitals to add their shares" if facts.secure else "")
            + f".\n- Server: proposes the study and adds the updates up. {server}\n"
            "- Recipients of the model: see the models of all rounds at most. Not trusted.\n"
        ),
        "release_type": "One release",
        "release_type_details": (
            "One final model; the updates and models of all rounds count as released. Each "
            "hospital keeps a ledger of what its patients have lost in all studies, and refuses "
            "what would exceed a limit for their lifetime."
        ),
        "data_source_type": "Static",
        "access_type": "Non-interactive",
    }


def _accounting(facts: PublicFacts) -> dict[str, Any]:
    return {
        "post_processing": (
            "Averaging, momentum and whatever else turns updates into a model use released values "
            "and public constants only."
        ),
        "composition": (
            f"{facts.rounds} rounds by the privacy loss distribution of the Poisson-subsampled "
            "Gaussian mechanism (dp-accounting); several runs on the same patients by a Renyi "
            "filter in the hospital's ledger. A round is charged before it is computed, and never "
            "given back."
        ),
    }


def _implementation(facts: PublicFacts) -> dict[str, Any]:
    audited = {
        "no": "The run was not attacked on purpose.",
        "passed": "Attacks on purpose found no more than is promised.",
        "failed": "",  # such a run shows no parameters
    }
    return {
        "preprocessing_and_hyperparameter_tuning": (
            "Images are normalised each by itself. " + _TUNING[facts.tuning]
        ),
        "mechanisms": (
            f"- Gaussian mechanism with Poisson sampling of patients (DP-SGD), by medfl "
            f"{facts.version}, which uses Opacus and Flower.\n"
            "- Floating point: clipped gradients and noise are rounded to a grid that is fixed "
            "beforehand, and added up as integers.\n"
            "- Noise and draws come from a cryptographic generator, keyed by the operating "
            "system.\n"
            f"- {audited[facts.audited]}\n"
        ),
        "justification": _blank("who chose the parameters, by which standard, and why."),
    }


def _notes(facts: PublicFacts) -> str:
    if facts.found.holds:
        return (
            "Sampling rate, noise multiplier and scores are left out on purpose: sizes of "
            "hospitals may follow from them. Add them where they do not."
        )
    rounds = {"rounds": facts.rounds, "planned": facts.planned}
    doubts = " ".join(doubt(name, ENGLISH, **rounds) for name in facts.doubts)
    return f"NOT TO BE SUBMITTED: this run does not show the protection of patients. {doubts}"
