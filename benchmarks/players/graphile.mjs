// Graphile Worker. Tuned: concurrency 24, a local queue of 2 000, completions of one timer tick together.
import { createRequire } from 'node:module'
import { Player, main } from './protocol.mjs'

const require = createRequire(process.env.BENCH_NODE_MODULES)
const { run, makeWorkerUtils, Logger } = require('graphile-worker')
const logger = new Logger(() => () => {})

class Graphile extends Player {
  running = []

  async setup () {
    await this.open()
    await this.utils.migrate()
  }

  async open () {
    this.utils = await makeWorkerUtils({ connectionString: this.url, logger })
  }

  addOne (number) { return this.utils.addJob('noop', { n: number }) }

  addBatch (size) {
    return this.utils.addJobs(Array.from({ length: size }, () => ({ identifier: 'noop', payload: { n: -1 } })))
  }

  async start ({ tuned = false, copies = 1 }) {
    const worker = { connectionString: this.url, logger }
    if (tuned) {
      Object.assign(worker, { concurrentJobs: 24, localQueue: { size: 2000 }, completeJobBatchDelay: 0, failJobBatchDelay: 0 })
    }
    for (let i = 0; i < copies; i++) {
      this.running.push(await run({
        preset: { worker },
        noHandleSignals: true,
        taskList: { noop: payload => { this.handle(payload.n) } },
        parsedCronItems: []
      }))
    }
  }

  async stop () {
    for (const runner of this.running) await runner.stop()
    this.running = []
  }
}

main(Graphile)
