"""Many bags and many configurations: what there is to do (`plan`), one piece of it (`work`), and all of it in
processes of this machine or through Ray (`pool`). `folder` is how results lie on disk."""
