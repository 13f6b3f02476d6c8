"""Check that the network of a checkpoint is still the network of its name."""

from __future__ import annotations

import logging
from pathlib import Path

from featuretap.specs import BackboneSpec
from featuretap.specs.network_digest import digest_before_dropout, network_digest
from featuretap.weights.layouts import CLASSIFICATION
from featuretap.weights.metadata import Record

logger = logging.getLogger("featuretap")


def is_of_network(record: Record, path: Path, *backbones: BackboneSpec) -> bool:
    """Return whether a record belongs to one of several backbones. Records without a network digest always do.

    A warning is logged for classifiers that computed other logits when the file was written.

    Args:
        record: the record.
        path: path of the file, for the warning.
        *backbones: specs of the backbones.

    Returns:
        True if the record belongs to one of them.
    """
    if not record.network or record.network in map(network_digest, backbones):
        return True
    before = next((spec for spec in backbones if record.network == digest_before_dropout(spec)), None)
    if before and record.description.head == CLASSIFICATION:
        logger.warning(
            "%s was written before the classifier of %s scaled its hidden layer by %s in evaluation mode; its logits "
            "differ from the logits at that time",
            path,
            before.name,
            before.classifier.evaluation_scale(),
        )
    return before is not None
