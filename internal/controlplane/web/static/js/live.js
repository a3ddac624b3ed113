/**
 * The one connection of a page. Messages of /ws become DOM events of `live`,
 * named for their type, with the message as `detail`:
 * progress, status, hardware, log, region, counts, resync, error; and `state`
 * whenever `live.state` changes.
 *
 * Every message carries the revision it made; a connection that is opened
 * again asks for what came after the last one. Where no WebSocket comes
 * through, the REST API is asked every few seconds instead.
 */
const FIRST_RETRY = 1_000
const LAST_RETRY = 20_000
const CONNECT_TIMEOUT = 8_000
const POLL_EVERY = 5_000
const POLL_AFTER_FAILURES = 2
const POLICY_VIOLATION = 1008 // what the server closes with when a session ends, too
const TYPES = new Set(['progress', 'status', 'hardware', 'log', 'region', 'counts', 'resync', 'error'])

class Live extends EventTarget {
  /** connecting, live, polling or lost */
  state = 'connecting'
  /** when the server was last heard, in ms */
  heardAt = Date.now()
  /** when the next attempt begins, in ms; 0 while connected */
  retryAt = 0

  #rev = 0
  #store = ''
  #watch = ''
  #socket = null
  #failures = 0
  #retry = 0
  #poll = 0
  #digests = new Map()

  /** Connects, if the page has something to watch. */
  start() {
    const { rev, store, watch } = document.body.dataset
    this.#rev = Number(rev) || 0
    this.#store = store ?? ''
    this.#watch = watch ?? ''
    if (!this.#watch) return
    this.#connect()
    addEventListener('online', () => this.tryNow())
    // A page that is left must not hold a connection in the back/forward cache.
    addEventListener('pagehide', () => this.#drop())
    addEventListener('pageshow', (e) => { if (e.persisted) location.reload() })
  }

  /** The revision up to which everything has been seen. */
  get rev() { return this.#rev }

  /** Does not wait for the next attempt. */
  tryNow() {
    if (this.#socket || !this.#watch) return
    clearTimeout(this.#retry)
    this.#connect()
  }

  #connect() {
    this.retryAt = 0
    const scheme = location.protocol === 'https:' ? 'wss:' : 'ws:'
    const query = new URLSearchParams(this.#rev ? { after: this.#rev, store_id: this.#store } : {})
    const socket = new WebSocket(`${scheme}//${location.host}/ws?${query}`)
    this.#socket = socket
    const timeout = setTimeout(() => socket.close(), CONNECT_TIMEOUT)
    let opened = false
    socket.onopen = () => {
      opened = true
      clearTimeout(timeout)
      this.#failures = 0
      clearTimeout(this.#poll)
      socket.send(JSON.stringify(this.#watch === 'all' ? { type: 'subscribe' } : { type: 'subscribe', task_id: this.#watch }))
      this.#heard('live')
    }
    socket.onmessage = (e) => {
      let message
      try { message = JSON.parse(e.data) } catch { return }
      this.#heard('live')
      this.#publish(message)
    }
    socket.onclose = (e) => {
      clearTimeout(timeout)
      if (this.#socket !== socket) return
      this.#socket = null
      if (!opened || e.code === POLICY_VIOLATION) this.#whoAmI()
      this.#later()
    }
  }

  #later() {
    this.#failures++
    // Half of the wait is chance, so that a thousand pages do not come back
    // to a restarted server in the same second.
    const wait = Math.min(FIRST_RETRY * 2 ** (this.#failures - 1), LAST_RETRY) * (0.5 + Math.random() / 2)
    this.retryAt = Date.now() + wait
    this.#retry = setTimeout(() => this.#connect(), wait)
    if (this.#failures === POLL_AFTER_FAILURES) this.#ask()
    if (this.state !== 'polling') this.#set('lost')
  }

  /** Leaves for the sign-in page, and comes back, when the session has ended. */
  async #whoAmI() {
    try {
      const answer = await fetch('/api/v1/me', { headers: { Accept: 'application/json' }, cache: 'no-store' })
      if (answer.status === 401) this.#leave()
    } catch { /* the server does not answer: that is another thing, and told */ }
  }

  #leave() {
    this.#drop()
    const back = location.pathname + location.search
    location.replace(`/login?${new URLSearchParams({ why: 'ended', return: back })}`)
  }

  async #ask() {
    clearTimeout(this.#poll)
    if (this.#socket?.readyState === WebSocket.OPEN) return
    try {
      const path = this.#watch === 'all' ? '/api/v1/tasks?limit=100' : `/api/v1/tasks/${this.#watch}`
      const answer = await fetch(path, { headers: { Accept: 'application/json' }, cache: 'no-store' })
      if (answer.status === 401) return this.#leave()
      if (!answer.ok) throw new Error(`status ${answer.status}`)
      const body = await answer.json()
      if (this.#socket?.readyState === WebSocket.OPEN) return
      for (const task of body.tasks ?? [body]) this.#tell(task)
      this.#heard('polling')
    } catch {
      if (this.#socket?.readyState !== WebSocket.OPEN) this.#set('lost')
    }
    this.#poll = setTimeout(() => this.#ask(), POLL_EVERY)
  }

  /** Turns a whole task into the messages that would have led to it. */
  #tell(task) {
    const { task_id, status, attempt, region_id } = task
    // What was just read is the newest there is, whenever it last changed.
    const rev = Math.max(task.rev ?? 0, this.#rev)
    this.#publish({ type: 'status', rev, task_id, status, attempt, region_id, polled: true }, false)
    if (task.progress) this.#publish({ ...task.progress, type: 'progress', rev, task_id }, false)
    if (task.log_tail) this.#publish({ type: 'log', rev, task_id, lines: task.log_tail, whole: true }, false)
    const digest = task.plan?.plan_digest
    if (digest && this.#digests.has(task_id) && this.#digests.get(task_id) !== digest) {
      this.#publish({ type: 'hardware', rev, task_id, hardware: task.hardware }, false)
    }
    if (digest) this.#digests.set(task_id, digest)
  }

  #publish(message, advance = true) {
    if (!TYPES.has(message?.type)) return
    if (advance && message.rev > this.#rev) this.#rev = message.rev
    this.dispatchEvent(new CustomEvent(message.type, { detail: message }))
  }

  #heard(state) {
    this.heardAt = Date.now()
    this.#set(state)
  }

  #set(state) {
    if (this.state === state) return
    this.state = state
    this.dispatchEvent(new CustomEvent('state', { detail: { state } }))
  }

  #drop() {
    clearTimeout(this.#retry)
    clearTimeout(this.#poll)
    const socket = this.#socket
    this.#socket = null
    socket?.close()
  }
}

export const live = new Live()
