"""The comparison of methods behind ``compare.py``: what is run, how it is kept, what it says.

``presets`` and ``entries`` say what is compared, ``images`` prepares the data, ``units`` makes runs
of them, ``work`` runs and ``store`` keeps them, ``tuning`` chooses settings, ``statistics``,
``tables`` and ``plots`` report. Imports the package and ``inprocess``; nothing imports it.
"""
