//! What wants TLS, and says so.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

/// The port of a task that answers whatever it is sent with this TLS alert, fatal (RFC 8446, section 6): 10, say, is an
/// unexpected message.
///
/// # Panics
/// Without a port.
pub async fn alerting_port(alert: u8) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("its address").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            // All is read first, or the alert would be lost with what was not.
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(&[21, 3, 3, 0, 2, 2, alert]).await;
        }
    });
    port
}
