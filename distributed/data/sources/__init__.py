"""Where data sets come from: each module turns one kind of source into samples per split."""
