"""Whether a checkpoint is of a network that a name still stands for."""

from __future__ import annotations

import logging
from pathlib import Path

from featuretap.specs import BackboneSpec
from featuretap.specs.network_digest import digest_before_dropout, network_digest
from featuretap.weights.layouts import CLASSIFICATION
from featuretap.weights.metadata import Record

logger = logging.getLogger("featuretap")


def is_of_network(record: Record, path: Path, *backbones: BackboneSpec) -> bool:
    """Return whether a record is of one of some backbones, as far as it states its network.

    Warns of a classifier that computed other logits when its file was written.
    """
    if not record.network or record.network in map(network_digest, backbones):
        return True
    before = next((spec for spec in backbones if record.network == digest_before_dropout(spec)), None)
    if before and record.description.head == CLASSIFICATION:
        logger.warning(
            "%s was written before the classifier of %s multiplied its hidden layer by %s in evaluation; its logits "
            "differ from those that it computed then",
            path,
            before.name,
            before.classifier.evaluation_scale(),
        )
    return before is not None
