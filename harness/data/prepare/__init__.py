"""How the data that ships with the harness was made: from freely licensed meshes to small point clouds.

Nothing here runs in a trial. `sweethome.prepare_sweethome12` writes the two furniture sets, and
`ldraw.prepare_pretraining` writes the shapes that the shipped encoder was pre-trained on. Both give the same
bytes every time, so a reader can check that the shipped files are what these lines make.
"""
