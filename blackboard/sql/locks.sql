-- name: acquire_lock
-- Asks for a lock under a request's id; it was granted iff request_id in the answer is that id. Calling again polls.
-- Locks: the lock's row. Index: locks_name_once, lock_waiters_pkey.
SELECT l.session_id, l.id, l.name, l.holder, l.lease_id, l.request_id, l.token, l.acquired_at, l.expires_at,
       (SELECT count(*) FROM blackboard.lock_waiters w
        WHERE w.session_id = l.session_id AND w.lock_id = l.id) AS waiting
FROM blackboard.acquire_lock(
    CAST(:session_id AS uuid), CAST(:name AS text), CAST(:agent_id AS text), CAST(:lease_id AS uuid),
    CAST(:request_id AS uuid), CAST(:ttl AS interval), CAST(:wait AS interval)) AS l;

-- name: renew_lock
-- Moves the end of a held lock. Locks: the lock's row. Index: locks_name_once.
SELECT l.session_id, l.id, l.name, l.holder, l.lease_id, l.request_id, l.token, l.acquired_at, l.expires_at,
       (SELECT count(*) FROM blackboard.lock_waiters w
        WHERE w.session_id = l.session_id AND w.lock_id = l.id) AS waiting
FROM blackboard.renew_lock(
    CAST(:session_id AS uuid), CAST(:name AS text), CAST(:agent_id AS text), CAST(:token AS bigint),
    CAST(:ttl AS interval)) AS l;

-- name: release_lock
-- Hands a held lock to its first waiter; the lock as it is then. Locks: the lock's row. Index: locks_name_once.
SELECT l.session_id, l.id, l.name, l.holder, l.lease_id, l.request_id, l.token, l.acquired_at, l.expires_at,
       (SELECT count(*) FROM blackboard.lock_waiters w
        WHERE w.session_id = l.session_id AND w.lock_id = l.id) AS waiting
FROM blackboard.release_lock(
    CAST(:session_id AS uuid), CAST(:name AS text), CAST(:agent_id AS text), CAST(:token AS bigint)) AS l;

-- name: cancel_lock_wait
-- Ends a request that waits or was granted. Locks: the lock's row. Index: lock_waiters_pkey.
SELECT blackboard.cancel_lock_wait(
    CAST(:session_id AS uuid), CAST(:agent_id AS text), CAST(:request_id AS uuid)) AS ended;

-- name: require_lock
-- Raises LeaseLost unless the token holds the lock. Locks: the lock's row, shared. Index: locks_name_once.
SELECT blackboard.require_lock(CAST(:session_id AS uuid), CAST(:name AS text), CAST(:token AS bigint));

-- name: get_lock
-- One lock by name. Index: locks_name_once.
SELECT l.session_id, l.id, l.name, l.holder, l.lease_id, l.request_id, l.token, l.acquired_at, l.expires_at,
       (SELECT count(*) FROM blackboard.lock_waiters w
        WHERE w.session_id = l.session_id AND w.lock_id = l.id) AS waiting
FROM blackboard.locks l
WHERE l.session_id = CAST(:session_id AS uuid) AND l.name = CAST(:name AS text);

-- name: list_locks
-- The locks that are held or waited for, by name. Index: locks_name_once.
SELECT l.session_id, l.id, l.name, l.holder, l.lease_id, l.request_id, l.token, l.acquired_at, l.expires_at,
       (SELECT count(*) FROM blackboard.lock_waiters w
        WHERE w.session_id = l.session_id AND w.lock_id = l.id) AS waiting
FROM blackboard.locks l
WHERE l.session_id = CAST(:session_id AS uuid)
  AND (CAST(:holder AS text) IS NULL OR l.holder = CAST(:holder AS text))
  AND (l.holder IS NOT NULL OR EXISTS (SELECT FROM blackboard.lock_waiters w
                                       WHERE w.session_id = l.session_id AND w.lock_id = l.id))
ORDER BY l.name
LIMIT CAST(:limit AS integer);
