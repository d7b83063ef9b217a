"""The keys that RecBole 1.2.1 reads and this package has no default for, a row each, with the values RecBole takes.

Keys of single models of RecBole are not here: `recbole_adarec.config.recbole_models` reads them from the model.
"""

from __future__ import annotations

from recbole_adarec.config.adarec_keys import FLAG, INT, NUMBER, TEXT, Section
from recbole_adarec.config.key import Key

INTERVAL = (str, list)
_LARGEST_SEED = 2**32 - 1  # of numpy

SECTIONS: tuple[Section, ...] = (
    Section("Device and processes", (
        Key("gpu_id", (str, int, list), "GPUs; several for several processes.", optional=True),
        Key("use_gpu", FLAG, "Whether to use a GPU."),
        Key("worker", INT, "Processes that load data.", low=0),
        Key("nproc", INT, "Processes on this machine.", optional=True, low=1),
        Key("world_size", INT, "Processes on all machines; -1: nproc.", optional=True),
        Key("group_offset", INT, "Number of the first process on this machine.", optional=True, low=0),
        Key("offset", INT, "The same, as RecBole's Config reads it.", optional=True, low=0),
        Key("local_rank", INT, "Number of a process on its machine; RecBole sets it.", optional=True, low=0),
        Key("ip", TEXT, "Address of the machine of the first process.", optional=True),
        Key("port", (int, str), "Port of the first process.", optional=True),
        Key("enable_amp", FLAG, "Mixed precision.", optional=True),
        Key("enable_scaler", FLAG, "Scale the loss in mixed precision.", optional=True),
    )),
    Section("Folders and logs", (
        Key("seed", INT, "Random seed.", low=0, high=_LARGEST_SEED),
        Key("reproducibility", FLAG, "Whether results can be reproduced exactly."),
        Key("state", TEXT, "Level of the log.", optional=True),
        Key("verbose", FLAG, "Whether RecBole reports every epoch.", optional=True),
        Key("data_path", TEXT, "Folder above the dataset's folder."),
        Key("checkpoint_dir", TEXT, "Folder of checkpoints; here the one above run folders."),
        Key("show_progress", FLAG, "Progress bars."),
        Key("config_file", (str, list), "Listed by RecBole; it reads nothing from it.", optional=True),
        Key("config_files", (str, list), "YAML files with values, on the command line.", optional=True),
        Key("save_dataset", FLAG, "Save the filtered dataset."),
        Key("dataset_save_path", TEXT, "The saved dataset.", optional=True),
        Key("save_dataloaders", FLAG, "Save the split data."),
        Key("dataloaders_save_path", TEXT, "The saved split data.", optional=True),
        Key("log_wandb", FLAG, "Log to Weights & Biases."),
        Key("wandb_project", TEXT, "Project in Weights & Biases.", optional=True),
    )),
    Section("More of training and evaluation", (
        Key("shuffle", FLAG, "Shuffle the training data before each epoch."),
        Key("eval_step", INT, "Training epochs before each validation; 0: none."),
        Key("reg_weight", (float, list), "Weight of RecBole's regularization, where a model has one.", optional=True),
        Key("require_pow", FLAG, "Whether RecBole's regularization takes powers."),
        Key("loss_decimal_place", INT, "Decimals of the loss in the log.", optional=True, low=0),
        Key("metric_decimal_place", INT, "Decimals of metrics.", low=0),
        Key("valid_metric_bigger", FLAG, "Set by RecBole: whether a larger valid_metric is better."),
        Key("repeatable", FLAG, "Whether items of the history can be recommended; sequential models need True."),
        Key("tail_ratio", NUMBER, "Of the metric TailPercentage: share, or number of interactions, of tail items.",
            optional=True),
        Key("neg_sampling", (), "RecBole's old word for train_neg_sample_args; it only warns.", optional=True),
        Key("training_neg_sample_num", (), "RecBole's old word for train_neg_sample_args; it only warns.",
            optional=True),
        Key("embedding_size", INT, "Channels in some of RecBole's models; for ours the same as hidden_size.",
            optional=True, low=1),
    )),
    Section("Changes to the batches of RecBole's models", (
        Key("transform", TEXT, "Change of each batch; RecBole's models have their own.", optional=True,
            choices=("mask_itemseq", "inverse_itemseq", "crop_itemseq", "reorder_itemseq", "user_defined")),
        Key("ft_ratio", NUMBER, "mask_itemseq: share of sequences with only the last item masked.", optional=True,
            low=0, high=1),
        Key("eta", NUMBER, "crop_itemseq: share of the sequence that is kept.", optional=True, low=0, high=1),
    )),
    Section("Dataset: files and columns", (
        Key("field_separator", TEXT, "Separator of columns."),
        Key("seq_separator", TEXT, "Separator inside sequences."),
        Key("encoding", TEXT, "Encoding of the files.", optional=True),
        Key("benchmark_filename", (list,), "Suffixes of files that are split already.", optional=True, each=(str,)),
        Key("load_col", (dict,), "Columns to load, by suffix of the file; ~: all.", optional=True),
        Key("unload_col", (dict,), "Columns not to load, by suffix of the file.", optional=True),
        Key("unused_col", (dict,), "Columns that are loaded and not used, by suffix of the file.", optional=True),
        Key("additional_feat_suffix", (list, str), "Suffixes of further files.", optional=True, each=(str,)),
        Key("numerical_features", (list,), "Columns of numbers to embed.", each=(str,)),
        Key("seq_len", (dict,), "Longest sequence, by column.", optional=True),
        Key("USER_ID_FIELD", TEXT, "Column of users.", optional=True),
        Key("ITEM_ID_FIELD", TEXT, "Column of items.", optional=True),
        Key("TIME_FIELD", TEXT, "Column of times.", optional=True),
        Key("RATING_FIELD", TEXT, "Column of ratings.", optional=True),
        Key("LABEL_FIELD", TEXT, "Column of labels.", optional=True),
        Key("NEG_PREFIX", TEXT, "Prefix of sampled negatives."),
        Key("threshold", (dict,), "Value from which an interaction is positive, by column.", optional=True),
    )),
    Section("Dataset: filters and changes", (
        Key("LIST_SUFFIX", TEXT, "Suffix of columns of histories."),
        Key("ITEM_LIST_LENGTH_FIELD", TEXT, "Column of the lengths of histories."),
        Key("POSITION_FIELD", TEXT, "Column of positions.", optional=True),
        Key("user_inter_num_interval", INTERVAL, "Interactions that a user needs, such as [5,inf).", optional=True),
        Key("item_inter_num_interval", INTERVAL, "Interactions that an item needs, such as [5,inf).", optional=True),
        Key("filter_inter_by_user_or_item", FLAG, "Drop interactions of users and items without features.",
            optional=True),
        Key("rm_dup_inter", TEXT, "Which of repeated interactions is kept; ~: all.", optional=True,
            choices=("first", "last")),
        Key("val_interval", (dict,), "Values to keep, by column.", optional=True),
        Key("alias_of_user_id", (list,), "Columns with the same ids as users.", optional=True, each=(str,)),
        Key("alias_of_item_id", (list,), "Columns with the same ids as items.", optional=True, each=(str,)),
        Key("alias_of_entity_id", (list,), "Columns with the same ids as entities.", optional=True, each=(str,)),
        Key("alias_of_relation_id", (list,), "Columns with the same ids as relations.", optional=True, each=(str,)),
        Key("preload_weight", (dict,), "Columns of trained vectors, by column of ids.", optional=True),
        Key("normalize_field", (list,), "Columns to normalize.", optional=True, each=(str,)),
        Key("normalize_all", FLAG, "Normalize all columns of numbers.", optional=True),
        Key("discretization", (dict,), "How columns of numbers become classes.", optional=True),
    )),
    Section("Dataset: knowledge graphs", (
        Key("HEAD_ENTITY_ID_FIELD", TEXT, "Column of head entities.", optional=True),
        Key("TAIL_ENTITY_ID_FIELD", TEXT, "Column of tail entities.", optional=True),
        Key("RELATION_ID_FIELD", TEXT, "Column of relations.", optional=True),
        Key("ENTITY_ID_FIELD", TEXT, "Column of entities.", optional=True),
        Key("kg_reverse_r", FLAG, "Add reversed relations.", optional=True),
        Key("entity_kg_num_interval", INTERVAL, "Triples that an entity needs, such as [5,inf).", optional=True),
        Key("relation_kg_num_interval", INTERVAL, "Triples that a relation needs, such as [5,inf).", optional=True),
    )),
    # RecBole's trainers, data and base classes read these; models of this package do not.
    Section("Other models of RecBole", tuple(Key(name, (), "Read by RecBole alone.", optional=True) for name in (
        "selected_features", "double_tower", "pretrain_epochs", "save_step", "train_rec_step", "train_kg_step",
        "kge_interval", "n_enc_epochs", "n_dec_epochs", "m_step", "warm_up_step", "convert_token_to_onehot",
        "token_num_threshold", "xgb_model", "xgb_silent", "xgb_nthread", "xgb_params", "xgb_num_boost_round",
        "xgb_early_stopping_rounds", "xgb_verbose_eval", "lgb_params", "lgb_num_boost_round",
    ))),
)  # fmt: skip

# What RecBole computes from other keys and writes into its configuration.
COMPUTED = frozenset({
    "device", "single_spec", "eval_type", "MODEL_TYPE", "MODEL_INPUT_TYPE", "valid_neg_sample_args",
    "test_neg_sample_args", "MASK_INDEX", "MASK_ITEM_SEQ", "POS_ITEMS", "NEG_ITEMS", "INVERSE_ITEM_SEQ",
    "CROP_ITEM_SEQ", "CROP_ITEM_SEQ_LEN", "REORDER_ITEM_SEQ",
})  # fmt: skip
