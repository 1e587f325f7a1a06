DROP FUNCTION blackboard.discard_task(uuid, uuid, text, text);
DROP FUNCTION blackboard.redrive_tasks(uuid, text, text, timestamptz, integer, boolean, text);
DROP FUNCTION blackboard.look_for_tasks(uuid[], text, text[]);
DROP FUNCTION blackboard.release_tasks(uuid, uuid[], uuid[], integer[], interval[], jsonb[], text);
DROP FUNCTION blackboard.fail_tasks(uuid, uuid[], uuid[], integer[], jsonb[], text[], interval[], integer[], text);
DROP FUNCTION blackboard.complete_and_claim(
    uuid, uuid, uuid, integer, jsonb, text, text[], uuid, uuid, integer);
DROP INDEX blackboard.tasks_dead;
