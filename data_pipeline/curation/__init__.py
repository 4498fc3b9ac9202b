"""What a set of clips is worth: a chain of stages looks at every clip of a manifest and scores it.

    stage                                        what a stage is, and which frames it may see
    motion  light  lettering  watermark  model   stages
    duplicates                                   clips that repeat others
    chain                                        stages together: a table of clips in, findings out
    processes  ray_data                          where that runs
    curate                                       manifest -> manifest
    recaption                                    frames out to a captioner, captions back

A stage is a pure function of a clip. What is found of a clip does not depend on where, in which
order or beside which others it is looked at.
"""
