"""The crash storm: the task engine under everything that kills, stops, cuts and outlasts it, checked afterwards.

``make chaos`` runs it for some minutes, ``tests/test_chaos.py`` a small one. Real processes of ``blackboard worker``
(and one that reads events by cursor) work on a PostgreSQL of their own, each through a door of a TCP proxy, some through
PgBouncer, under leases of a few seconds, while tasks are added all the time, to several sessions that each of them serves. Meanwhile, drawn from a seed:

=========  ============================================================================================================
kill       a process is killed outright (handlers also kill their own process, before and after their commit)
stop       a process is stopped until its lease has lapsed, and then goes on as if nothing had been
edge       the same for about one term: it renews while it is being swept
restart    the server is stopped in immediate mode and started again
crash      a process of the server is killed, and the server recovers by itself
outage     the server is down for longer than a lease's term
cut        connections are cut: those of one process, of all, or in the middle of a message
lose       the server commits and its answer is lost: of a claim, a completion, a COMMIT, a renewal, an add, a read …
hole       a process's packets go nowhere for a while, in both directions
deaf       a process's connections are dead, and nobody ever tells it
refuse     a process gets no new connections
bouncer    PgBouncer is killed and started again
=========  ============================================================================================================

The handlers write to a ledger in the transaction that completes their task, and say at their start that they started.
When everything runs again, and all tasks have ended, this must hold of every session (``checks.py``):

- every task that was added has ended, as it was meant to; the ledger has exactly one row for each that completes in a
  transaction, of the attempt that completed it; no commit that was answered is missing;
- history tells of one owner at a time, of attempts that grow by one, of legal steps only, and its fold is the row;
- no attempt was started twice, and none without its claim; no limit was exceeded, and none counts what does not run;
- a reader by cursor has seen every event, once;
- nothing lapsed within one term of a start of the server, in the end no lease is left over, and none held a task beside
  another;
- every process that was not killed has reconnected by itself, and ends when asked to.
"""
