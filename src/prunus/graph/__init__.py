"""What falls together: a model's operators, a label for every index, the sets that are coupled.

``trace`` records the operators of a forward pass, ``rules`` say how each relates the indices of
its operands, ``solve`` joins what must go together, ``units`` lists what can be removed and why
the rest cannot.
"""
