// pg-boss. Tuned: four loops of batch 1 000 that go on while batches come back full. For wake-ups its LISTEN/NOTIFY.
import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'
import { Player, main } from './protocol.mjs'

const require = createRequire(process.env.BENCH_NODE_MODULES)
const { PgBoss } = await import(pathToFileURL(require.resolve('pg-boss')))

class Boss extends Player {
  bosses = []

  async setup (options) {
    await this.open(options)
    await this.boss.createQueue('bench', options.notify ? { notify: true } : {})
  }

  async open ({ notify = false }) {
    this.notify = notify
    this.boss = await this.connect()
  }

  async connect () {
    const boss = new PgBoss({ connectionString: this.url, useListenNotify: this.notify })
    boss.on('error', error => console.error(error))
    await boss.start()
    return boss
  }

  addOne (number) { return this.boss.send('bench', { n: number }) }
  addBatch (size) { return this.boss.insert('bench', Array.from({ length: size }, () => ({ data: { n: -1 } }))) }

  async start ({ tuned = false, copies = 1, ping = false }) {
    const options = tuned && !ping ? { batchSize: 1000, burstWhenBatchFull: true, localConcurrency: 4 } : {}
    for (let i = 0; i < copies; i++) {
      const boss = i ? await this.connect() : this.boss
      if (i) this.bosses.push(boss)
      await boss.work('bench', options, async jobs => { for (const job of jobs) this.handle(job.data.n) })
    }
  }

  async stop () {
    await this.boss.offWork('bench')
    for (const boss of this.bosses) await boss.stop({ graceful: false })
    this.bosses = []
  }
}

main(Boss)
