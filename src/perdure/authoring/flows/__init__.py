"""Flows: workflows that are written as graphs.

* `nodes`: values to come, which stand for themselves in arguments while a graph is built;
* `graph`: calls, maps and choices, how they are added, and what is checked;
* `flow`: a flow as a workflow, and the decorator;
* `running`: the body of every flow; `earlier`: the one whose journals have no graph;
* `text`: graphs as data, and back; `diagram`: graphs as pictures.

A graph is data: what a journal, a file and a diagram have. The functions that it calls come from the program, by name.
"""
