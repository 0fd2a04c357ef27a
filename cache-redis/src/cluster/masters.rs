//! Which masters a cluster has been met with: a number for the state of all of them together, the same for everybody.

use std::sync::{Arc, atomic::Ordering};

use redis::{Pipeline, Value};

use super::{Cluster, lost};
use crate::{
    Error, ErrorKind,
    address::Endpoint,
    connection::Link,
    dial::{dial, failed},
    mux::{Reply, alongside},
    node::asking,
    scripts::{Form, MEET},
    slots::Redirect,
    units::Repeat,
    wire,
};

impl Cluster {
    /// Enters the server behind a new connection into the record that all who share the cluster have of its masters. One
    /// that is not in it yet may lack data that has been acknowledged, so it gives the whole cluster another number.
    ///
    /// The record is kept in the cluster itself. Should a replica take over its slot, that copy of the record does not have
    /// the replica in it, so the replica counts as new as well.
    pub(crate) async fn vouch(self: &Arc<Self>, link: &Link) -> Result<(), Error> {
        // A user who may not ask goes without.
        let Some(reign) = link.server.reign() else { return Ok(()) };
        while !self.meet(reign, link).await? {}
        Ok(())
    }

    /// `false`: to be asked again.
    async fn meet(self: &Arc<Self>, reign: u64, link: &Link) -> Result<bool, Error> {
        let known = self.incarnation();
        let number = fastrand::u64(1..);
        let meet = |mut pipeline: Pipeline| {
            MEET.on(&mut pipeline, Form::Text, &[&self.record])
                .arg(format!("{reign:016x}"))
                .arg(format!("{number:016x}"));
            pipeline
        };
        let owner = self.node_of(&self.record).await?;
        let question = meet(Pipeline::new());
        let answer = match *owner.keeper.endpoint() == link.endpoint {
            true => link.pipeline(&question).await,
            false => owner.keeper.link().await?.pipeline(&question).await,
        };
        let mut reply = answer.map_err(Error::request)?.pop();
        if let Some(redirect) = moving(reply.as_ref()) {
            reply =
                self.put_aside(&redirect.endpoint(owner.keeper.endpoint()), link, &meet(asking())).await?;
        }
        match reply {
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
                Ok(true)
            }
            reply => self.take(known, reply.as_ref()),
        }
    }

    /// Takes the number that the record has answered with, where `known` was the number before it was asked. `false`:
    /// another number has been taken meanwhile, and which of the two is the later one is not known. A number that was
    /// replaced never comes back.
    fn take(&self, known: u64, number: Option<&Value>) -> Result<bool, Error> {
        let number = number
            .and_then(number_of)
            .ok_or_else(|| Error::protocol("no number where the cluster's was asked for"))?;
        let taken = self.incarnation.compare_exchange(known, number, Ordering::AcqRel, Ordering::Acquire);
        Ok(taken.map_or_else(|other| other == number, |_known| true))
    }

    /// Reads the number again: to be called after a cache's marker has been read that carries another one, since whoever
    /// gives the cluster a new number writes it before any marker. A marker with the number that is known is believed
    /// without this: while the record's node is away, that costs its own keys only.
    pub(crate) async fn recognise(self: &Arc<Self>) -> Result<(), Error> {
        while !self.ask().await? {}
        Ok(())
    }

    /// `false`: to be asked again.
    async fn ask(self: &Arc<Self>) -> Result<bool, Error> {
        let known = self.incarnation();
        if known == 0 {
            // Nobody has vouched for anybody so far.
            return Ok(true);
        }
        let add = |pipeline: &mut Pipeline, _: usize, _: Form| {
            pipeline.cmd("HGET").arg(&self.record).arg("number");
            1
        };
        let replies = self.units(vec![0], |_| self.record.clone(), Repeat::Once, &add);
        let mut reply = replies.await.pop().unwrap_or_else(|| Err(lost()))?.pop();
        if let Some(redirect) = moving(reply.as_ref()) {
            let node = self.follow(&*self.node_of(&self.record).await?, &redirect);
            let mut question = asking();
            add(&mut question, 0, Form::Text);
            reply = node.keeper.link().await?.pipeline(&question).await.map_err(Error::request)?.pop();
        }
        match reply {
            Some(Value::ServerError(error)) if error.code() != "WRONGTYPE" => Err(Error::reply(&error)),
            // It is lost, or is no record.
            reply if reply.as_ref().and_then(number_of).is_none() => self.meet_all().await.map(|()| true),
            reply => self.take(known, reply.as_ref()),
        }
    }

    /// The record is lost: all masters have to be entered anew. One that is away is entered when it is back, as with every
    /// new connection.
    async fn meet_all(self: &Arc<Self>) -> Result<(), Error> {
        let (mut met, mut away) = (false, None);
        for node in self.map().await?.masters() {
            match node.keeper.link().await {
                Ok(link) => {
                    self.vouch(&link).await?;
                    met = true;
                }
                Err(error) => away = Some(error),
            }
        }
        match away {
            Some(error) if !met => Err(error),
            _ => Ok(()),
        }
    }

    /// Asks the node to which the record is being moved, and gives its last reply. Over a connection of its own: the one
    /// that the node's keeper is making may be waiting for `new`, the record's owner, to be vouched for.
    async fn put_aside(
        &self,
        at: &Endpoint,
        new: &Link,
        question: &Pipeline,
    ) -> Result<Option<Value>, Error> {
        if *at == new.endpoint {
            return Ok(new.pipeline(question).await.map_err(Error::request)?.pop());
        }
        let (connection, mut running) = dial(&self.settings, at, &self.settings.login, None).await?;
        let replies = alongside(&mut running, connection.pipeline(question)).await;
        Ok(replies.map_err(|error| failed(&self.settings, at, error))?.pop().map(Reply::into_value))
    }
}

/// A cluster's number. Never 0, which is that of nobody.
fn number_of(reply: &Value) -> Option<u64> {
    u64::from_str_radix(wire::text(reply)?, 16).ok().filter(|number| *number != 0)
}

/// Where the record is being moved to, if that is the answer. As one key it can be written there, too.
fn moving(reply: Option<&Value>) -> Option<Redirect> {
    let Some(Value::ServerError(error)) = reply else { return None };
    Redirect::of(error).filter(|redirect| redirect.ask)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use futures::poll;
    use test_servers::RedisCluster;

    use super::*;
    use crate::{RedisProvider, cluster::PERIOD, fleet::Fleet};

    /// What another process writes that has met somebody new.
    const NEXT: u64 = 0xff;

    async fn connected(servers: &RedisCluster) -> (RedisProvider, Arc<Cluster>) {
        let url = format!("redis+cluster://{}", servers.nodes()[0].addr());
        let provider = RedisProvider::builder(url).build().unwrap();
        provider.connect().await.unwrap();
        let Fleet::Cluster(cluster) = provider.fleet() else { panic!("no cluster") };
        let cluster = Arc::clone(cluster);
        (provider, cluster)
    }

    fn another_number(servers: &RedisCluster, record: &str) {
        let number = format!("{NEXT:016x}");
        servers.owner(record).unwrap().command::<()>(&["HSET", record, "number", &number]).unwrap();
    }

    #[tokio::test]
    async fn an_answer_of_before_does_not_bring_a_number_back() {
        let Some(servers) = RedisCluster::start(3, 0) else { return };
        let (_provider, cluster) = connected(&servers).await;
        let owner = cluster.node_of(&cluster.record).await.unwrap();
        let link = owner.keeper.link().await.unwrap();
        let mut of_before = Box::pin(cluster.vouch(&link));
        assert!(poll!(&mut of_before).is_pending());
        // Over the same connection: the answer has come, and its caller has yet to look at it.
        cluster.ping().await.unwrap();
        another_number(&servers, &cluster.record);
        cluster.recognise().await.unwrap();
        of_before.await.unwrap();
        assert_eq!(cluster.incarnation(), NEXT);
    }

    /// As while a master is away.
    #[tokio::test]
    async fn calls_that_fail_put_off_no_look_at_the_number() {
        let Some(servers) = RedisCluster::start(3, 0) else { return };
        let (_provider, cluster) = connected(&servers).await;
        another_number(&servers, &cluster.record);
        let begun = Instant::now();
        while cluster.incarnation() != NEXT {
            assert!(begun.elapsed() < PERIOD * 3, "not looked at");
            cluster.heed(&Error::new(ErrorKind::Connect, "away"));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
