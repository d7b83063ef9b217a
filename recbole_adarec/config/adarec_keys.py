"""The keys of this package, a row each, in the sections and the order of the files in properties/.

``defaults`` names the file by ``run`` (adarec.yaml) or by the stage (model/<Model>.yaml).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from recbole_adarec.config.key import Key

INT, NUMBER, TEXT, FLAG = (int,), (float,), (str,), (bool,)
OPERATIONS = (
    "conv_3", "conv_5", "dilated_conv_3", "dilated_conv_5", "sep_conv_3", "sep_conv_5", "dilated_sep_conv_3",
    "dilated_sep_conv_5", "attention", "multi_head_attention", "min_gru", "linear_recurrence", "filter",
    "feed_forward", "gated_feed_forward", "max_pool_3", "avg_pool_3", "skip", "none",
)  # fmt: skip
CELL_FORMS = ("relu", "residual")
LAYER_MAPPINGS = ("emd", "left", "right", "left_jump", "right_jump", "random", "none")
LAYER_DISTANCES = ("kl", "mse")
COSTS = ("params", "macs", "latency")
ITEM_LOSSES = ("auto", "full", "chunked", "sampled")
ITEM_TABLES = ("full", "adaptive")
ITEM_OUTPUTS = ("tied", "untied")
STORED_WEIGHTS = ("float32", "float16", "int8")
LAYER_SHARING = ("none", "cross_layer", "cross_block", "adjacent_layer", "adjacent_block")
AUTO = "auto"  # the value of ``backbone`` for the candidates in properties/backbone/auto.yaml
BACKBONES = ("BERT4Rec", "CausalBSARec", "LRURec", "NextItNet", "SASRec")


class Section(NamedTuple):
    """A group of keys.

    Attributes
    ----------
    title : str
        The comment above the group.
    keys : tuple of Key
        In the order of the files.
    """

    title: str
    keys: tuple[Key, ...]


def registered_operations() -> Collection[str]:
    """The names of all operations, those of plugins too."""
    from recbole_adarec.model.search_space.operations import OPERATIONS as registered

    return tuple(registered)


def registered_layer_mappings() -> Collection[str]:
    """The names of all layer mappings, those of plugins too."""
    from recbole_adarec.distillation.layer_mapping import MAPPINGS as registered

    return tuple(registered)


def registered_backbones() -> Collection[str]:
    """The names of all backbones."""
    from recbole_adarec.model.teachers.base import backbones

    return (AUTO, *backbones())


def _distilled(search: Any, student: Any = ...) -> dict[str, Any]:
    return {"search": search, "student": search if student is ... else student}


def _trained(value: Any) -> dict[str, Any]:
    return dict.fromkeys(("teacher", "student", "cprec"), value)


def _all(value: Any, **others: Any) -> dict[str, Any]:
    return dict.fromkeys(("teacher", "search", "student", "cprec"), value) | others


def _tables(value: Any, **others: Any) -> dict[str, Any]:
    return dict.fromkeys(("search", "student", "cprec"), value) | others


def _student_and_cprec(value: Any) -> dict[str, Any]:
    """The same default for the two models whose item table can be quantized."""
    return {"student": value, "cprec": value}


def _nextitnet(value: Any, cprec: Any = ...) -> dict[str, Any]:
    return {"teacher": value, "cprec": value if cprec is ... else cprec}


SECTIONS: tuple[Section, ...] = (
    Section("The run", (
        Key("dataset", TEXT, "The dataset; ml-100k comes with RecBole.", {"run": "ml-100k"}),
        Key("run_dir", TEXT, "Folder of the run; an existing run is continued. ~: saved/<dataset>-<time>.",
            {"run": None}, optional=True),
        Key("MAX_ITEM_LIST_LENGTH", (int, str), "Longest history; longer ones are cut. auto: 50, 100 or 200, by the "
            "data.", {"run": AUTO}, low=1, choices=(AUTO,)),
        Key("model", TEXT, "A RecBole model to train and report alone, as RecBole trains it.", {"run": None},
            optional=True),
        Key("baselines", (list,), "RecBole models to train and report beside ours, such as [SASRec, GRU4Rec].",
            {"run": []}, each=(str,)),
        Key("plugins", (str, list), "Python files with your operations, teacher adapters and layer mappings.",
            {"run": None}, optional=True, each=(str,)),
        Key("threads", INT, "CPU threads. ~: torch chooses.", {"run": None}, optional=True, low=1),
        Key("latency_repeats", INT, "Timed requests of one sequence, for each model.", {"run": 200}, low=1),
        Key("eval_scores_mb", INT, "Memory for scores in evaluation, in MB; large catalogs take smaller batches.",
            {"run": 512}, low=1),
    )),
    Section("The teacher", (
        Key("backbone", (str, list), "The teacher's network; its own training defaults: properties/backbone/. auto, or "
            "a list of names: the best of several, or their mean, by validation.",
            {"run": AUTO, "teacher": "NextItNet"}, choices=(AUTO, *BACKBONES), registry=registered_backbones,
            each=(str, dict), nonempty=True),
        Key("trial_epochs", INT, "Of several teachers: epochs of each before the poor ones are dropped. ~: an eighth "
            "of the most epochs.", {"run": None}, optional=True, low=1),
        Key("most_members", INT, "Of several teachers: how many are trained on after the trial, and how many a mean "
            "has at most. ~: 3 to 5, by the number of targets.", {"run": None}, optional=True, low=1),
        Key("teachers_at_a_time", INT, "Of several teachers: how many are trained at a time, each in a process with "
            "its share of the threads. ~: as many as threads on CPUs, one on a GPU.", {"run": None}, optional=True,
            low=1),
        Key("teacher", TEXT, "Instead of a backbone: a RecBole checkpoint (.pth), or the name of a RecBole model.",
            {"run": None}, optional=True),
        Key("distilled_layers", INT, "Layers that a student learns from: every n-th layer, the last one included. ~: "
            "all, 8 at most.", {"teacher": None}, optional=True, low=1),
        Key("taught_positions", INT, "Prefix ends of a window at which BERT4Rec, or a RecBole model that is not "
            "causal, teaches.", {"teacher": 8}, low=1),
    )),
    Section("Size and dropout", (
        Key("hidden_size", INT, "Channels. A student's are in its architecture.",
            {"teacher": 64, "search": 32, "cprec": 64}, low=1),
        Key("dropout_prob", NUMBER, "Dropout; in supernet and student that of embedding, output and residual cells.",
            {"teacher": 0.5, "search": 0.05, "student": 0.1, "cprec": 0.4}, low=0, high=0.99),
        Key("attn_dropout_prob", NUMBER, "Dropout of attention weights. ~: dropout_prob.", {"teacher": None},
            optional=True, low=0, high=0.99),
        Key("full_dropout_at", NUMBER, "Parameters for each target below which CpRec has less dropout; 0: never.",
            {"cprec": 1.6}, low=0),
    )),
    Section("NextItNet and CpRec", (
        Key("block_num", INT, "Repetitions of the dilations; 8 x 2 dilations = 16 residual blocks.", _nextitnet(8),
            low=1),
        Key("dilations", (list,), "Dilations d of the blocks; each block has d and 2d.", _nextitnet([1, 4]), each=INT,
            each_low=1, nonempty=True),
        Key("kernel_size", INT, "Taps of a convolution.", _nextitnet(3), low=1),
        Key("layer_sharing", TEXT, "Which convolutions share weights.", _nextitnet("none", "cross_block"),
            choices=LAYER_SHARING),
    )),
    Section("SASRec and BERT4Rec", (
        Key("n_layers", INT, "Transformer layers.", {"teacher": 8}, low=1),
        Key("n_heads", INT, "Attention heads.", {"teacher": 2}, low=1),
        Key("inner_size", INT, "Channels of the feed-forward layer.", {"teacher": 256}, low=1),
        Key("hidden_act", TEXT, "Activation of the feed-forward layer.", {"teacher": "gelu"}, choices=("gelu", "relu")),
        Key("norm_first", FLAG, "Normalize what enters a layer and the last output; False: what leaves each layer.",
            {"teacher": True}),
        Key("position_embeddings", FLAG, "Learned embeddings of positions, which LRURec never has; causal models know "
            "the order without.", {"teacher": True}),
        Key("filter_weight", NUMBER, "CausalBSARec: share of the filter, the rest is attention.", {"teacher": 0.7},
            low=0, high=1),
        Key("mask_ratio", NUMBER, "BERT4Rec: share of items masked in training.", {"teacher": 0.3}, low=0, high=1),
        Key("last_mask_ratio", NUMBER, "BERT4Rec: share of windows with only the last item masked.", {"teacher": 0.1},
            low=0, high=1),
    )),
    Section("The supernet", (
        Key("cells", INT, "Cells S, one after the other.", {"search": 2}, low=1),
        Key("repeats", INT, "How many times all cells are applied in the search: with the same operations and alpha, "
            "and norms of their own.", {"search": 2}, low=1),
        Key("nodes", INT, "Computed nodes of a cell; 2 nodes have 3 edges, 3 nodes have 6.", {"search": 2}, low=1,
            high=64),
        Key("cell_form", TEXT, "What surrounds the operations of a cell: relu: ReLU before them and after the sum; "
            "residual: nothing before, LayerNorm of input plus sum.", {"search": "residual"}, choices=CELL_FORMS),
        Key("operations", (list,), "Candidate operations of an edge. The paper's conv_3, conv_5, dilated_conv_3 and "
            "dilated_conv_5 cost 3 to 5 times as much as sep_conv; recurrences take longer and were rarely chosen.",
            {"search": ["multi_head_attention", "attention", "filter", "feed_forward", "sep_conv_3", "sep_conv_5",
                        "skip", "none"]},
            choices=OPERATIONS, registry=registered_operations, each=(str,), nonempty=True),
        Key("share_cells", FLAG, "True: all cells share one alpha, as in the paper; False: each cell has its own.",
            {"search": False}),
    )),
    Section("The search", (
        Key("alpha_init_std", NUMBER, "Standard deviation of alpha's random start.", {"search": 0.001}, low=0),
        Key("alpha_learning_rate", NUMBER, "Learning rate of alpha (Adam) for 400 steps; with more steps, each is "
            "smaller.", {"search": 0.05}, low=0),
        Key("bilevel", FLAG, "True: alpha learns from users that w never sees; False: one-level search, both learn "
            "from all users.", {"search": True}),
        Key("alpha_users", NUMBER, "Share of the users whose windows update alpha and never w.", {"search": 0.5},
            low=0, high=1),
        Key("uniform_paths", FLAG, "True: w is trained on paths drawn uniformly; False: from alpha, as published.",
            {"search": True}),
        Key("alpha_warmup", NUMBER, "Share of the epochs in which only w is trained, rounded down.", {"search": 0.3},
            low=0, high=1),
        Key("gumbel_temperature", NUMBER, "Temperature of the Gumbel softmax at the start.", {"search": 1.0}, low=1e-3),
        Key("gumbel_decay", NUMBER, "Factor of the temperature after each epoch.", {"search": 0.9}, low=0, high=1),
        Key("cost", TEXT, "Cost of an operation: its parameters, its MACs, or its latency on this machine.",
            {"search": "params"}, choices=COSTS),
        Key("cost_budget", NUMBER, "Largest cost of the student's layers, as a share of the teacher's, without budget; "
            "~: no limit.", {"search": 0.05}, optional=True, low=0),
        Key("budget", (float, dict), "Largest cost of the whole student: share of the teacher's bytes, or a mapping of "
            "bytes, parameters, macs, latency to shares of the teacher's, or above 1 to an amount (latency: "
            "microseconds).", {"search": None}, optional=True),
        Key("cost_floor", NUMBER, "Least share of the operations' budget (a budget less what else is paid) that the "
            "student must use; 0: no lower bound.",
            {"search": 0.7}, low=0, high=1),
        Key("beta", NUMBER, "Weight of L_cost; it grows from 0 to this in the first half of alpha's steps.",
            {"search": 1.0}, low=0),
        Key("candidates", INT, "Architectures of each size that validation chooses from: the most probable one, and "
            "draws.", {"search": 4}, low=1),
        Key("candidate_temperature", NUMBER, "Candidates are drawn from softmax(alpha / this).", {"search": 3.0},
            low=1e-3),
        Key("candidate_sizes", (list,), "Hidden sizes of candidates; ~: hidden_size alone.",
            {"search": [32, 48, 64]}, optional=True, each=INT, each_low=1, nonempty=True),
        Key("candidate_repeats", (list,), "Repeats of candidates; ~: repeats alone.", {"search": None}, optional=True,
            each=INT, each_low=1, nonempty=True),
        Key("candidate_epochs", INT, "Epochs that each candidate is trained; fewer on large datasets, down to a part "
            "of one.", {"search": 2}, low=1),
        Key("finalist_epochs", INT, "Epochs that the best of each size is trained to choose the size; fewer on large "
            "datasets, down to a part of one.", {"search": 6}, low=1),
        Key("size_level", NUMBER, "Level of the one-sided paired test by which a finalist is worse than the best; the "
            "smallest that is not is chosen. 0.5: the best.", {"search": 0.05}, low=0, high=1),
    )),
    Section("The student", (
        Key("architecture", (str, dict), "Architecture file; given for a run, it is trained without a search.",
            {"run": None, "student": "architecture/default.yaml"}, optional=True),
        Key("stored_weights", TEXT, "Form of the weights in the model file, to which they are rounded after training.",
            {"search": "int8", "student": "int8"}, choices=STORED_WEIGHTS),
        Key("supernet_path", TEXT, "search.pth of a run, to start from the supernet's weights.", {"student": None},
            optional=True),
        Key("init_from_supernet", FLAG, "True: start from the supernet's weights of the chosen operations.",
            {"student": False}),
    )),
    Section("Distillation", (
        Key("teacher_path", TEXT, "teacher.pth of a run; ~: no distillation.", _distilled(None), optional=True),
        Key("gamma", NUMBER, "Weight of distillation against cross entropy; 0: none.", _distilled(0.8), low=0, high=1),
        Key("layer_mapping", TEXT, "How teacher layers are assigned to student layers.", _distilled("emd"),
            choices=LAYER_MAPPINGS, registry=registered_layer_mappings),
        Key("hidden_distance", TEXT, "Distance of two layers.", _distilled("kl"), choices=LAYER_DISTANCES),
        Key("layer_weight_floor", NUMBER, "Share of the uniform weight that every layer has at least; 0: as published.",
            _distilled(0.5), low=0, high=1),
        Key("layer_weight_momentum", NUMBER, "Share of the old layer weights that an update keeps; 0: as published.",
            _distilled(0.9), low=0, high=0.9999),
        Key("kd_temperature", NUMBER, "Temperature of output distillation.", _distilled(1.0), low=1e-3),
        Key("loss_ce", FLAG, "Whether cross entropy is in the loss.", _distilled(True)),
        Key("loss_embedding", FLAG, "Whether embedding distillation is in the loss.", _distilled(True)),
        Key("loss_hidden", FLAG, "Whether distillation of hidden layers is in the loss.", _distilled(True)),
        Key("loss_output", FLAG, "Whether output distillation is in the loss.", _distilled(True)),
        Key("init_from_teacher", FLAG, "Start the item table from the teacher's by truncated SVD.", _distilled(True)),
        Key("teacher_cache_mb", INT, "Memory for teacher outputs, in MB; recomputed for each batch if they need more.",
            _distilled(2048), low=0),
    )),
    Section("The item table", (
        Key("item_table", TEXT, "full: rows of hidden_size channels; adaptive: narrower or quantized rows for rarer "
            "items.", _tables("full", cprec="adaptive"), choices=ITEM_TABLES),
        Key("item_blocks", (int, list), "Number of blocks by popularity, or where all but the first begin.", _tables(4),
            low=2, each=NUMBER, each_low=1e-9, nonempty=True),
        Key("item_block_growth", NUMBER, "Factor of the block size from one block to the next.", _tables(2.0),
            low=1e-3),
        Key("item_codes", (int, list), "Channels for each code of a quantized block; 0: no codes. ~: by total_budget.",
            _student_and_cprec(None), optional=True, low=0, each=INT, each_low=1, nonempty=True),
        Key("item_code_epochs", INT, "Epochs of training after rows are quantized; the codes stay fixed.",
            _student_and_cprec(4), low=0),
        Key("item_width_factor", NUMBER, "How many times narrower each block is than the one before. ~: by "
            "total_budget.", {"search": 1.0, "student": None, "cprec": None}, optional=True, low=1),
        Key("item_widths", (list,), "Channels of each block. ~: by item_width_factor.", _tables(None), optional=True,
            each=INT, each_low=1, nonempty=True),
        Key("total_budget", NUMBER, "Adaptive table: parameters in all as a share of the teacher's; in CpRec of the "
            "uncompressed NextItNet's.", _student_and_cprec(0.125), optional=True, low=0),
        Key("total_parameters", INT, "total_budget as a number of parameters; it wins. ~: by total_budget.",
            {"student": None}, optional=True, low=1),
        Key("item_levels", INT, "Parts of the softmax: 1 ranks better, 2 is for many items or narrow rows. ~: 2 with "
            "narrow rows, untied output or above 50,000 items, else 1.", _tables(None), optional=True, low=1, high=2),
        Key("item_output", TEXT, "tied: the softmax uses the embeddings; untied: rows of its own.", _tables("tied"),
            choices=ITEM_OUTPUTS),
    )),
    Section("The softmax over items", (
        Key("popularity_prior", NUMBER, "Factor of log(popularity) in an item's logit; 0: none.", _all(1.0), low=0),
        Key("served_prior", NUMBER, "Share of the popularity prior in the scores that rank; ~: 0.5, 0.75 or 1, by "
            "validation.", _all(None), optional=True, low=0, high=1),
        Key("repeat_bias", NUMBER, "Added to the logits of items in the history; ~: by validation; 0: none.",
            _trained(None), optional=True),
        Key("normalize_items", FLAG, "Whether items are scored by rows of one length, which is learned.",
            {"teacher": False}),
        Key("item_loss", TEXT, "full, chunked (as exact, less memory), sampled, or auto: by catalog and memory.",
            _all("auto"), choices=ITEM_LOSSES),
        Key("sampled_above", INT, "Catalogs of more items are sampled by auto.", _all(10000), low=0),
        Key("sampled_items", INT, "Negatives that a sampled batch shares.", _all(4096), low=1),
    )),
    Section("Training", (
        Key("epochs", INT, "Training epochs; by default fewer on large datasets, and of several teachers 8 to 24, by "
            "the number of targets.", _trained(24) | {"search": 10}, low=0),
        Key("stopping_step", INT, "Epochs without a better valid_metric before stopping.", _trained(10), low=0),
        Key("train_batch_size", INT, "Targets (predicted interactions) of a batch: rows, as RecBole counts them.",
            _all(800), low=1),
        Key("learner", TEXT, "Optimizer; in the search that of w.", _all("adamw")),
        Key("learning_rate", NUMBER, "Highest learning rate; in the search that of w.", _all(0.005), low=0),
        Key("item_table_rate", NUMBER, "Factor of the item table's learning rate. ~: root of items over targets of a "
            "batch, 1 to 4.", _all(None), optional=True, low=0),
        Key("learning_rate_decay", NUMBER, "Share of the learning rate left at the end of a cosine; 1: constant.",
            _trained(0.05) | {"search": 0.1}, low=0, high=1),
        Key("weight_average", NUMBER, "Share of the training over whose end weights are averaged; the average is "
            "evaluated and kept. 0: none.", {"teacher": 0.0}, low=0, high=1),
        Key("weight_decay", NUMBER, "Weight decay (L2 penalty).", _all(0.0005), low=0),
        Key("clip_grad_norm", (dict,), "Gradient clipping, arguments of torch's clip_grad_norm_.",
            {"search": {"max_norm": 5.0}}, optional=True),
        Key("train_neg_sample_args", (dict,), "Negative sampling; ~: every item is a negative.",
            _all(None, run=None), optional=True),
        Key("loss_type", TEXT, "Loss; CE: cross entropy.", _all("CE")),
    )),
    Section("Evaluation", (
        Key("eval_args", (dict,), "Split, order, grouping and mode of evaluation.",
            {"run": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"}}),
        Key("metrics", (list, str), "Metrics; RecBole's names.",
            {"run": ["Recall", "MRR", "NDCG", "Hit", "Precision"]}, each=(str,), nonempty=True),
        Key("topk", (list, int), "Lengths k of the ranked lists.", {"run": [10]}, low=1, each=INT, each_low=1,
            nonempty=True),
        Key("valid_metric", TEXT, "Metric of validation that chooses epochs and architectures.", {"run": "NDCG@10"}),
        Key("eval_batch_size", INT, "Rows of scores over the whole catalog held at a time.", {"run": 512}, low=1),
    )),
)  # fmt: skip
