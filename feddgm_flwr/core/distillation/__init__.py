"""Step 3 of Algorithm 1: one client's update becomes images, by trajectory matching.

``distill`` descends, ``matching`` differentiates through the student's steps, ``student`` and
``convnet`` differentiate one step, ``engine`` maps it over clients.
"""
