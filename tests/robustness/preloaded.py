"""What commands import, imported once."""

import warnings

warnings.simplefilter("ignore")

import torch  # noqa: E402
from fairseq_cli import generate, interactive, train, validate  # noqa: E402, F401

import taskmoe_plugin.bench.decode  # noqa: E402
import taskmoe_plugin.cli.extract_subnet  # noqa: E402
import taskmoe_plugin.cli.main  # noqa: E402
import taskmoe_plugin.convert.conversion  # noqa: E402
import taskmoe_plugin.convert.join  # noqa: E402
import taskmoe_plugin.convert.prune  # noqa: E402
import taskmoe_plugin.report.content  # noqa: E402
import taskmoe_plugin.report.files  # noqa: E402
import taskmoe_plugin.report.table  # noqa: E402
import taskmoe_plugin.subnet.consolidate  # noqa: E402
import taskmoe_plugin.subnet.ctranslate2_format  # noqa: E402
import taskmoe_plugin.translate.translator  # noqa: E402, F401

torch.set_num_threads(1)
