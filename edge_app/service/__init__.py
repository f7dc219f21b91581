"""
The service behind ``edge-app run``: inspects without a screen, for months.

::

    main thread     loop.py        source ─► station ─► events, outputs, board; feeds the watchdog
    caretaker       caretaker.py   signals; follows the link `current`; prepares what is swapped in
    web             edge_app/web   the page, reads the board, calls the controls
    one a sink      outbox.py      event store, broker, pins, webhook

The loop never waits for any of the others: it offers to bounded queues and sets fields.
"""
