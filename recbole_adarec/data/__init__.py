"""RecBole's datasets, with training histories cut into windows."""
