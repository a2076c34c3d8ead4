//! What the role that a gateway connects as may do.

use super::super::Result;
use super::{Postgres, error, rows};

/// Words for rights that a gateway does not need: with them, who has taken the gateway has the registry too.
pub(super) async fn excess(registry: &Postgres) -> Result<Option<String>> {
    let mut connection = registry.gateway().await?;
    let row = sqlx::query(
        "SELECT current_user::text AS role,
                (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS superuser,
                (SELECT pg_has_role(current_user, relowner, 'MEMBER') FROM pg_class WHERE oid = 'doorward.devices'::regclass) AS owner,
                (SELECT string_agg(name, ', ' ORDER BY name)
                 FROM unnest('{doorward_issuer,doorward_operator,doorward_auditor}'::text[]) AS name
                 WHERE pg_has_role(current_user, name, 'MEMBER')) AS roles,
                has_table_privilege(current_user, 'doorward.devices', 'INSERT, UPDATE, DELETE') AS manages",
    )
    .fetch_one(&mut *connection)
    .await
    .map_err(error::read)?;
    connection.release();

    let role: &str = rows::get(&row, "role")?;
    let rights = if rows::get(&row, "superuser")? {
        "is a superuser".to_owned()
    } else if rows::get(&row, "owner")? {
        "owns the registry's tables".to_owned()
    } else if let Some(roles) = rows::get::<Option<&str>>(&row, "roles")? {
        format!("has the rights of {roles}")
    } else if rows::get(&row, "manages")? {
        "may change devices".to_owned()
    } else {
        return Ok(None);
    };
    Ok(Some(format!("'{role}' {rights}")))
}
