//! Which masters a cluster has been met with: a number for the state of all of them together, the same for everybody.

use std::sync::{Arc, atomic::Ordering};

use redis::{Pipeline, Value};

use super::{Cluster, lost};
use crate::{
    Error, ErrorKind,
    connection::Link,
    keeper::run_number,
    scripts::{Form, MEET},
    units::Repeat,
    wire,
};

impl Cluster {
    /// Sees to it that the server behind a new connection is one that everybody who shares the cluster has met. One that
    /// nobody knows may hold older data than has been acknowledged, so it gives the whole cluster another number.
    ///
    /// The record is kept in the cluster itself. Whoever takes over its slot is unknown to what it has of it.
    pub(crate) async fn vouch(self: &Arc<Self>, link: &Link) -> Result<(), Error> {
        // A user who may not ask goes without.
        let Some(run_id) = &link.server.run_id else { return Ok(()) };
        // One that was master before may have been replaced meanwhile, and lack what its successor has acknowledged.
        let reign = match &link.server.history {
            Some(history) => run_number(&format!("{run_id}{history}")),
            None => run_number(run_id),
        };
        let mut meet = Pipeline::new();
        MEET.on(&mut meet, Form::Text, &[&self.record])
            .arg(format!("{reign:016x}"))
            .arg(format!("{:016x}", fastrand::u64(1..)));
        let owner = self.node_of(&self.record).await?;
        let reply = if *owner.keeper.endpoint() == link.endpoint {
            link.pipeline(&meet).await
        } else {
            owner.keeper.link().await?.pipeline(&meet).await
        };
        match reply.map_err(Error::request)?.pop() {
            Some(Value::ServerError(error)) => {
                let error = Error::reply(&error);
                if error.kind() != ErrorKind::Denied {
                    self.heed(&error);
                    return Err(error);
                }
                self.advice.say(format!(
                    "EVAL is refused ({error}): a failover or a restart of the cluster that loses acknowledged writes is \
                     not noticed; grant +eval +hget +hset +hexists +hlen +del +rename on {}",
                    self.record
                ));
                Ok(())
            }
            reply => self.take(reply.as_ref()),
        }
    }

    fn take(&self, number: Option<&Value>) -> Result<(), Error> {
        let number = number.and_then(wire::text).and_then(|text| u64::from_str_radix(text, 16).ok());
        match number {
            Some(number) => {
                self.incarnation.store(number, Ordering::Release);
                Ok(())
            }
            None => Err(Error::protocol("no number where the cluster's was asked for")),
        }
    }

    /// Reads the number again. Whoever has given the cluster another one has written that before any cache's marker: to be
    /// called after one has been read.
    pub(crate) async fn recognise(self: &Arc<Self>) -> Result<(), Error> {
        if self.incarnation() == 0 {
            // Nobody has vouched for anybody so far.
            return Ok(());
        }
        let add = |pipeline: &mut Pipeline, _: usize, _: Form| {
            pipeline.cmd("HGET").arg(&self.record).arg("number");
            1
        };
        let replies = self.units(vec![0], |_| self.record.clone(), Repeat::Once, &add);
        let reply = replies.await.pop().unwrap_or_else(|| Err(lost()))?.pop();
        match reply {
            Some(Value::ServerError(error)) => Err(Error::reply(&error)),
            Some(Value::Nil) => {
                // Lost: all have to be met anew.
                let map = self.map().await?;
                for node in map.masters() {
                    self.vouch(&*node.keeper.link().await?).await?;
                }
                Ok(())
            }
            reply => self.take(reply.as_ref()),
        }
    }
}
