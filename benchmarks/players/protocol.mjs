// What every contestant's process speaks: one JSON object a line in, one out. The same as protocol.py.
import readline from 'node:readline'

const now = () => Number(process.hrtime.bigint()) / 1e9
const sleep = seconds => new Promise(resolve => setTimeout(resolve, seconds * 1000))

export class Player {
  constructor (url) {
    this.url = url
    this.handled = 0
    this.added = 0
    this.starts = []
    this.feeding = false
  }

  handle (number) {
    this.handled++
    if (number >= 0) this.starts.push([number, now()])
  }

  do_setup (options) { return this.setup(options) }
  do_open (options) { return this.open(options) }

  async do_fill ({ n }) {
    for (let done = 0; done < n; done += 1000) await this.addBatch(Math.min(1000, n - done))
  }

  async do_add ({ n }) {
    const began = now()
    for (let i = 0; i < n; i++) await this.addOne(-1)
    return { seconds: now() - began }
  }

  async do_batch ({ n, size }) {
    const began = now()
    for (let i = 0; i < n; i += size) await this.addBatch(size)
    return { seconds: now() - began }
  }

  do_start (options) {
    this.handled = 0
    this.starts = []
    return this.start(options)
  }

  do_stop () { return this.stop() }
  do_count () { return { handled: this.handled, added: this.added } }
  do_starts () { return { starts: this.starts } }

  async do_ping ({ n, gap }) {
    const pings = []
    for (let number = 0; number < n; number++) {
      await sleep(gap * (0.5 + (number * 0.618) % 1))
      const began = now()
      await this.addOne(number)
      pings.push([number, began, now()])
    }
    return { pings }
  }

  do_feed ({ size, ahead }) {
    this.added = this.handled
    this.feeding = true
    this.feeder = (async () => {
      while (this.feeding) {
        if (this.added - this.handled < ahead) {
          await this.addBatch(size)
          this.added += size
        } else {
          await sleep(0.001)
        }
      }
    })()
  }

  async do_unfeed () {
    this.feeding = false
    await this.feeder
  }
}

export async function main (Kind) {
  const player = new Kind(process.argv[2])
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const command = JSON.parse(line)
    let answer
    try {
      answer = await player['do_' + command.do](command) ?? {}
    } catch (error) {
      console.error(error)
      answer = { error: String(error) }
    }
    process.stdout.write(JSON.stringify(answer) + '\n')
  }
  process.exit(0)
}
