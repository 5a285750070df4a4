"""What some ids mean in every vocabulary: the layout of XLM-R and fairseq [facts: token ids]."""

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
BOS_ID, PAD_ID, EOS_ID, UNK_ID = range(4)
ROW_MULTIPLE = 64  # rows of an embedding are padded to it: aligned loads on GPUs [facts: rows of 64]
