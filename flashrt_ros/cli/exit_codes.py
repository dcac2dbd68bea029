"""What the exit code of every subcommand means."""

GOOD, BAD, WRONG_INPUT, PARTLY, INTERRUPTED = 0, 1, 2, 3, 130

MEANINGS = {
    GOOD: 'done, and the verdict is good',
    BAD: 'done, and the verdict is bad: worse, over a threshold, or does not fit',
    WRONG_INPUT: 'nothing done: wrong arguments, bag, checkpoint, configuration or device',
    PARTLY: 'some episodes could not be evaluated; the others are there',
    INTERRUPTED: 'interrupted; the same command goes on where it was',
}
