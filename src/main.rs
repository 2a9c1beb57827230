//! Not yet more than the default.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let mut config = fanwire::config::Config::default();
    if let Ok(listen) = std::env::var("FANWIRE_LISTEN") {
        config.listen = vec![listen.parse().expect("an address")];
    }
    fanwire::telemetry::start(&config.log).expect("logging starts once");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let app = fanwire::app::App::start(config).await.expect("it starts");
        println!("listening on {:?}", app.addresses());
        tokio::signal::ctrl_c().await.expect("a signal");
        app.shut_down().await;
    });
}
