"""
The live window: what a person at a bench sees and types.

::

    source ─► worker thread ─► slot ─► painter thread ─► slot ─► window (main thread)
                 ▲   station            view                       keys, mouse
                 └───── commands ◄───── session ◄──────────────────────┘
                                           │ ▲
                                 learner thread, writer thread

Pictures go through slots that hold one, the newest. Nothing on the right can hold up what is left
of it: a window that is slow shows fewer pictures, and no frame is inspected later for it.
"""
