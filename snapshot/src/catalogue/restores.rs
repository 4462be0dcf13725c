//! Restores on their way, and which volumes they hold.

use rusqlite::{Connection, params};
use uuid::Uuid;

use super::{Catalogue, CatalogueError, change, from_json};
use crate::coordinator::RestorePlan;
use crate::messages::Member;

impl Catalogue {
    /// Notes a restore that hosts are asked to prepare.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn begin_restore(&self, plan: &RestorePlan) -> Result<(), CatalogueError> {
        self.lock().execute(
            "INSERT INTO restores (id, state, plan) VALUES (?1, 'preparing', ?2)",
            params![plan.id.to_string(), serde_json::to_string(plan)?],
        )?;
        Ok(())
    }

    /// Every host is prepared: from now on the restore goes forward. There is never more than one such restore of a
    /// volume: what the order of two would be, nobody could say.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn decide_restore(&self, plan: &RestorePlan) -> Result<(), CatalogueError> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        refuse_if_being_restored(&transaction, &plan.left())?;
        store(&transaction, plan)?;
        Ok(transaction.commit()?)
    }

    /// More hosts have switched.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn go_on_with_restore(&self, plan: &RestorePlan) -> Result<(), CatalogueError> {
        store(&self.lock(), plan)
    }

    /// Fails if one of the volumes has still to be restored.
    ///
    /// # Errors
    /// [`CatalogueError::BeingRestored`], and others.
    pub fn refuse_if_being_restored(&self, volumes: &[Member]) -> Result<(), CatalogueError> {
        refuse_if_being_restored(&self.lock(), volumes)
    }

    /// A restore that was not decided has come to nothing.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn forget_restore(&self, id: Uuid) -> Result<(), CatalogueError> {
        self.change(id, "DELETE FROM restores WHERE id = ?1 AND state = 'preparing'", [id.to_string()])
    }

    /// Every host has switched: what was replaced is a snapshot now, if it was to be kept.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn finish_restore(&self, plan: &RestorePlan) -> Result<(), CatalogueError> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        let removed = transaction.execute("DELETE FROM restores WHERE id = ?1", [plan.id.to_string()])?;
        if let Some(kept) = plan.kept.as_ref().filter(|_| removed == 1) {
            transaction.execute(
                "INSERT INTO snapshots (id, name, state, manifest) VALUES (?1, ?2, 'inconsistent', ?3)",
                params![kept.id.to_string(), kept.name, serde_json::to_string(kept)?],
            )?;
        }
        Ok(transaction.commit()?)
    }

    /// The restores that have still to be completed.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn decided_restores(&self) -> Result<Vec<RestorePlan>, CatalogueError> {
        decided_restores(&self.lock())
    }
}

fn store(connection: &Connection, plan: &RestorePlan) -> Result<(), CatalogueError> {
    let update = "UPDATE restores SET state = 'decided', plan = ?2 WHERE id = ?1";
    change(connection, plan.id, update, params![plan.id.to_string(), serde_json::to_string(plan)?])
}

fn decided_restores(connection: &Connection) -> Result<Vec<RestorePlan>, CatalogueError> {
    let mut query =
        connection.prepare_cached("SELECT plan FROM restores WHERE state = 'decided' ORDER BY id")?;
    let rows = query.query_map([], |row| from_json(0, &row.get::<_, String>(0)?))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn refuse_if_being_restored(connection: &Connection, volumes: &[Member]) -> Result<(), CatalogueError> {
    let mut held = decided_restores(connection)?.into_iter().flat_map(|plan| plan.left());
    match held.find(|member| volumes.contains(member)) {
        Some(volume) => Err(CatalogueError::BeingRestored(volume)),
        None => Ok(()),
    }
}
