import { count, localTimes, timeElement } from './format.js'
import { setIcon } from './icons.js'
import { live } from './live.js'
import { t } from './words.js'

const AROUND = 15 // rows that are there above and below what is seen
const MOST_ROWS = 160 // in the page, however high it is
const CHUNK = 100 // rows of one request
const KEPT = 2_000 // rows that are remembered
const ASK_AFTER = 60 // while somebody scrolls past, nothing is asked
const REFRESH_EVERY = 1_000
const LOOK_EVERY = 2_000 // for new tasks that match
const COUNT_AFTER = 200

/**
 * A list of tasks of any length. The order of all of them is asked once and
 * kept; only the rows in view are in the page. A row changes in place, at most
 * once a second, and none moves until a person asks for the order anew.
 *
 * Attributes: total, most (tasks that may be changed at once), query, sort,
 * part (the page is one of several and stays it).
 */
class TaskTable extends HTMLElement {
  #table; #body; #form; #blank; #above; #below; #line
  #list = [] // ids in order, as long as they are few
  #bytes = null // the same, 16 bytes each
  #known = null // the same as a set, once it is asked for
  #rows = new Map() // id → what the server said of it, the oldest first
  #made = new Map() // place → <tr>
  #height = 0
  #asked = new Set()
  #dirty = new Set()
  #fresh = new Set() // ids nobody has looked at
  #waiting = new Set() // of new tasks that match
  #selected = new Set()
  #anchor = -1 // where the last box was ticked
  #cursor = -1
  #timers = {}
  #stop = null

  connectedCallback() {
    this.#table = this.querySelector('table')
    this.#body = this.#table.tBodies[0]
    this.#form = this.closest('form')
    this.#blank = this.querySelector('template').content.firstElementChild
    this.#above = space()
    this.#below = space()
    this.#stop = new AbortController()
    const { signal } = this.#stop
    for (const [i, row] of [...this.#body.rows].entries()) {
      row.setAttribute('aria-rowindex', i + 2)
      this.#list.push(row.dataset.task)
      this.#made.set(i, row)
    }
    this.#body.prepend(this.#above)
    this.#body.append(this.#below)
    this.#line = this.#makeLine()
    live.addEventListener('status', (e) => this.#status(e.detail), { signal })
    this.addEventListener('click', (e) => this.#click(e))
    this.addEventListener('change', (e) => this.#change(e))
    this.#form.addEventListener('reset', () => { this.#selected.clear(); this.#reflect() }, { signal })
    this.#form.addEventListener('formdata', (e) => this.#send(e.formData), { signal })
    addEventListener('scroll', () => this.#soon('draw', 0, () => this.#draw()), { passive: true, signal })
    addEventListener('resize', () => { this.#height = 0; this.#soon('draw', 0, () => this.#draw()) }, { signal })
    addEventListener('pageshow', () => this.#readBoxes(), { signal })
    this.#bulk?.addEventListener('click', (e) => { if (e.target.closest('[aria-disabled="true"]')) e.preventDefault() }, { signal })
    if (!this.hasAttribute('part') && this.total > this.#list.length) this.#order()
  }

  disconnectedCallback() {
    this.#stop?.abort()
    for (const timer of Object.values(this.#timers)) clearTimeout(timer)
  }

  get total() { return Number(this.getAttribute('total')) }
  get most() { return Number(this.getAttribute('most')) }
  get #bulk() { return document.querySelector('.bulk') }
  get #size() { return this.#bytes ? this.#bytes.length / 16 : this.#list.length }

  /** Moves the cursor by rows; for the keyboard. */
  move(step) {
    const to = Math.min(Math.max(this.#cursor + step, 0), this.#size - 1)
    if (to < 0) return
    this.#made.get(this.#cursor)?.removeAttribute('data-cursor')
    this.#cursor = to
    if (!this.#made.has(to)) {
      scrollTo({ top: scrollY + this.#body.getBoundingClientRect().top + to * this.#rowHeight() - innerHeight / 2 })
      this.#draw()
    }
    const row = this.#made.get(to)
    row?.setAttribute('data-cursor', '')
    row?.querySelector('a')?.focus()
  }

  /** Ticks or clears the box of the cursor's row. */
  toggle() {
    const row = this.#made.get(this.#cursor)
    if (!row) return
    this.#tick(row.dataset.task, !this.#selected.has(row.dataset.task), this.#cursor)
    this.#reflect()
  }

  // ---- order

  async #order() {
    const query = new URLSearchParams({ q: this.getAttribute('query'), sort: this.getAttribute('sort') })
    let answer
    try {
      answer = await fetch(`/tasks/order?${query}`, { cache: 'no-store' })
      if (!answer.ok) return
      this.#bytes = new Uint8Array(await answer.arrayBuffer())
    } catch { return } // the page stays as it is, with its link to the next one
    const total = Number(answer.headers.get('lpmos-total'))
    this.setAttribute('total', total)
    this.#known = null
    this.#waiting.clear()
    this.#sayNew()
    // What stands there stays where it still belongs.
    for (const [i, row] of this.#made) {
      if (row.dataset.task === this.#id(i)) continue
      row.remove()
      this.#made.delete(i)
    }
    this.#table.setAttribute('aria-rowcount', total + 1)
    this.querySelector('[data-part="next"]')?.remove()
    this.querySelector('[data-part="shown"]').textContent = total > this.#size
      ? t('The first %s of %s tasks.', count(this.#size), count(total))
      : total === 1 ? t('1 task.') : t('%s tasks. They stay in this order until you ask for another.', count(total))
    this.#draw()
  }

  #id(i) {
    if (!this.#bytes) return this.#list[i]
    let hex = ''
    for (let at = i * 16; at < i * 16 + 16; at++) hex += this.#bytes[at].toString(16).padStart(2, '0')
    return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`
  }

  #has(id) {
    if (!this.#known) {
      this.#known = new Set()
      for (let i = 0; i < this.#size; i++) this.#known.add(this.#id(i))
    }
    return this.#known.has(id)
  }

  // ---- rows in view

  #rowHeight() {
    if (!this.#height) this.#height = [...this.#made.values()][0]?.getBoundingClientRect().height || 48
    return this.#height
  }

  #draw() {
    if (!this.#bytes) return
    const height = this.#rowHeight()
    const above = -this.#body.getBoundingClientRect().top
    const first = Math.max(0, Math.min(Math.floor(above / height) - AROUND, this.#size - 1))
    const seen = Math.ceil(innerHeight / height) + 2 * AROUND
    const end = Math.min(this.#size, first + Math.min(seen, MOST_ROWS))
    const focused = this.#body.contains(document.activeElement) ? document.activeElement.closest('tr') : null
    for (const [i, row] of this.#made) {
      if (i >= first && i < end) continue
      row.remove()
      this.#made.delete(i)
    }
    let before = this.#above
    const missing = []
    for (let i = first; i < end; i++) {
      const id = this.#id(i)
      let row = this.#made.get(i)
      if (!row) {
        row = this.#make(i, id)
        this.#made.set(i, row)
        if (!this.#rows.has(id)) missing.push(id)
      }
      if (before.nextElementSibling !== row) before.after(row)
      before = row
    }
    stretch(this.#above, first * height)
    stretch(this.#below, (this.#size - end) * height)
    // Whoever stood in a row that left finds the list again, not the top of the page.
    if (focused && !focused.isConnected) this.querySelector('.scroller').focus({ preventScroll: true })
    if (missing.length) this.#soon('ask', ASK_AFTER, () => this.#ask())
  }

  #make(i, id) {
    const row = this.#blank.cloneNode(true)
    row.setAttribute('aria-rowindex', i + 2)
    row.dataset.task = id
    for (const el of row.querySelectorAll('[task]')) el.setAttribute('task', id)
    const box = row.querySelector('[name="task"]')
    box.value = id
    this.#mark(row, id)
    if (i === this.#cursor) row.setAttribute('data-cursor', '')
    const data = this.#rows.get(id)
    if (data) fill(row, data)
    else empty(row)
    return row
  }

  async #ask() {
    const ids = []
    for (const row of this.#made.values()) {
      const id = row.dataset.task
      if (row.getAttribute('aria-busy') && !this.#asked.has(id) && ids.length < CHUNK) ids.push(id)
    }
    if (!ids.length) return
    for (const id of ids) this.#asked.add(id)
    const rows = await this.#fetch(ids)
    for (const id of ids) this.#asked.delete(id)
    if (!rows) return this.#soon('ask', REFRESH_EVERY, () => this.#ask())
    this.#show(ids, rows)
    if ([...this.#made.values()].some((row) => row.getAttribute('aria-busy'))) this.#soon('ask', ASK_AFTER, () => this.#ask())
  }

  async #fetch(ids, query) {
    const ask = new URLSearchParams({ ids: ids.join(',') })
    if (query !== undefined) ask.set('q', query)
    try {
      const answer = await fetch(`/tasks/rows?${ask}`, { cache: 'no-store' })
      return answer.ok ? (await answer.json()).rows : null
    } catch { return null }
  }

  #show(ids, rows) {
    const got = new Map(rows.map((data) => [data.id, data]))
    for (const id of ids) {
      const data = got.get(id) ?? { id, gone: true }
      this.#rows.delete(id)
      this.#rows.set(id, data)
    }
    for (const id of this.#rows.keys()) {
      if (this.#rows.size <= KEPT) break
      this.#rows.delete(id)
    }
    for (const [i, row] of this.#made) {
      const data = got.has(row.dataset.task) || ids.includes(row.dataset.task) ? this.#rows.get(row.dataset.task) : null
      if (!data) continue
      if (row.querySelector('task-run') || !data.run) fill(row, data)
      else this.#replace(i, row, data) // drawn by the server, without a bar
    }
  }

  #replace(i, row, data) {
    this.#rows.set(data.id, data)
    const made = this.#make(i, data.id)
    const focus = row.contains(document.activeElement) ? document.activeElement.tagName : ''
    row.replaceWith(made)
    this.#made.set(i, made)
    if (focus) made.querySelector(focus)?.focus({ preventScroll: true })
  }

  // ---- what happens meanwhile

  #status({ task_id: id, status, polled }) {
    if (!this.#has(id)) {
      if (this.hasAttribute('part') || this.#waiting.has(id) || this.#fresh.size > 500) return
      this.#fresh.add(id)
      return this.#soon('look', LOOK_EVERY, () => this.#look())
    }
    const row = [...this.#made.values()].find((r) => r.dataset.task === id)
    if (!row) return void this.#rows.delete(id)
    if (polled && row.querySelector('task-status')?.dataset.status === status) return
    this.#dirty.add(id)
    this.#soon('refresh', REFRESH_EVERY, () => this.#refresh())
  }

  async #refresh() {
    const ids = [...this.#dirty].slice(0, CHUNK)
    for (const id of ids) this.#dirty.delete(id)
    const rows = await this.#fetch(ids)
    if (rows) this.#show(ids, rows)
    if (ids.some((id) => this.#selected.has(id))) this.#soon('count', COUNT_AFTER, () => this.#count())
    if (this.#dirty.size) this.#soon('refresh', REFRESH_EVERY, () => this.#refresh())
  }

  // A task that is new to this list is only counted, and only if it matches.
  async #look() {
    const ids = [...this.#fresh].slice(0, CHUNK)
    for (const id of ids) this.#fresh.delete(id)
    for (const { id } of (await this.#fetch(ids, this.getAttribute('query'))) ?? []) this.#waiting.add(id)
    this.#sayNew()
    if (this.#fresh.size) this.#soon('look', LOOK_EVERY, () => this.#look())
  }

  #makeLine() {
    const line = document.createElement('div')
    const button = document.createElement('button')
    line.className = 'waiting'
    line.setAttribute('role', 'status')
    button.type = 'button'
    button.className = 'button'
    button.dataset.size = 's'
    button.addEventListener('click', () => this.#order())
    this.prepend(line)
    return { line, button }
  }

  #sayNew() {
    const n = this.#waiting.size
    const { line, button } = this.#line
    if (!n) return line.replaceChildren()
    button.textContent = n === 1 ? t('1 new task: show it') : t('%s new tasks: show them', count(n))
    if (!button.isConnected) line.append(button)
  }

  // ---- selection

  #click(e) {
    const box = e.target.closest?.('[name="task"]')
    if (!box) return
    const at = Number(box.closest('tr').getAttribute('aria-rowindex')) - 2
    if (e.shiftKey && this.#anchor >= 0) {
      const [from, to] = [Math.min(at, this.#anchor), Math.max(at, this.#anchor)]
      for (let i = from; i <= to; i++) this.#tick(this.#id(i), box.checked)
    }
    this.#tick(box.value, box.checked, at)
    this.#reflect()
  }

  #change({ target }) {
    if (target.name !== 'all') return
    this.#selected.clear()
    for (let i = 0; target.checked && i < Math.min(this.#size, this.most); i++) this.#selected.add(this.#id(i))
    this.#reflect()
  }

  #tick(id, on, at) {
    if (!on) this.#selected.delete(id)
    else if (this.#selected.size < this.most) this.#selected.add(id)
    if (at !== undefined) this.#anchor = at
  }

  // After Back the browser has ticked the boxes again by itself.
  #readBoxes() {
    for (const row of this.#made.values()) {
      if (row.querySelector('[name="task"]')?.checked) this.#selected.add(row.dataset.task)
    }
    if (this.#selected.size) this.#reflect()
  }

  #mark(row, id) {
    const on = this.#selected.has(id)
    row.querySelector('[name="task"]').checked = on
    if (on) row.setAttribute('data-selected', '')
    else row.removeAttribute('data-selected')
  }

  #reflect() {
    for (const row of this.#made.values()) this.#mark(row, row.dataset.task)
    const all = this.querySelector('[name="all"]')
    const n = this.#selected.size
    all.checked = n > 0 && n === Math.min(this.#size, this.most)
    all.indeterminate = n > 0 && !all.checked
    if (!this.#bulk) return
    this.#bulk.toggleAttribute('data-open', n > 0)
    this.#bulk.querySelector('[data-part="selected"]').textContent = n === 1 ? t('1 selected') : t('%s selected', count(n))
    if (n) this.#soon('count', COUNT_AFTER, () => this.#count())
  }

  async #count() {
    const ids = [...this.#selected].join(',')
    if (!ids) return
    let answer
    try {
      answer = await fetch('/tasks/bulk/counts', { method: 'POST', body: new URLSearchParams({ ids }) })
      if (!answer.ok) return
      answer = await answer.json()
    } catch { return } // the page that follows counts again
    if (ids !== [...this.#selected].join(',')) return
    for (const button of this.#bulk.querySelectorAll('[name="action"]')) {
      const n = answer.counts[button.value] ?? 0
      button.querySelector('[data-part="n"]').textContent = ` ${count(n)}`
      button.setAttribute('aria-disabled', n === 0)
      button.title = n ? '' : t('Not now: none of the selected tasks can take it.')
    }
    const n = this.#selected.size
    const where = answer.regions === 1 ? t('in 1 region') : t('in %s regions', answer.regions)
    this.#bulk.querySelector('[data-part="selected"]').textContent = `${n === 1 ? t('1 selected') : t('%s selected', count(n))} ${where}`
  }

  #send(data) {
    for (const name of ['all', 'task']) data.delete(name)
    data.set('ids', [...this.#selected].join(','))
  }

  // One timer of a name at a time; who comes later waits with it.
  #soon(name, wait, f) {
    if (this.#timers[name]) return
    const run = () => { delete this.#timers[name]; f() }
    this.#timers[name] = wait ? setTimeout(run, wait) : requestAnimationFrame(run)
  }
}

function space() {
  const row = document.createElement('tr')
  row.className = 'space'
  row.setAttribute('aria-hidden', 'true')
  row.append(document.createElement('td'))
  row.hidden = true
  return row
}

function stretch(row, height) {
  row.hidden = height <= 0
  row.firstElementChild.setAttribute('height', Math.max(0, Math.round(height)))
}

function put(row, name, text) {
  const el = row.querySelector(`[data-part="${name}"]`)
  const inner = el?.querySelector(':scope > bdi') ?? el
  if (inner && inner.textContent !== text) inner.textContent = text
  return el
}

// A row whose task has not been read yet.
function empty(row) {
  row.setAttribute('aria-busy', 'true')
  put(row, 'short', row.dataset.task.slice(0, 8))
  for (const name of ['host', 'summary', 'os', 'region', 'mac', 'serial', 'by', 'profile']) put(row, name, '…')
  row.querySelector('[data-column="created"]').textContent = '…'
  row.querySelector('[data-part="summary"]').hidden = false
  row.querySelector('task-run').hidden = true
  row.querySelector('task-status').hidden = true
}

function fill(row, data) {
  row.removeAttribute('aria-busy')
  row.toggleAttribute('data-gone', Boolean(data.gone))
  const status = row.querySelector('task-status')
  if (data.gone) {
    status.hidden = true
    const run = row.querySelector('task-run')
    if (run) run.hidden = true
    put(row, 'summary', t('was deleted')).hidden = false
    return
  }
  status.hidden = false
  status.dataset.status = data.status
  status.setAttribute('attempt', data.attempt)
  setIcon(status, data.status)
  status.querySelector('span').textContent = data.word
  const link = row.querySelector('.row-link')
  link.setAttribute('href', data.link)
  put(row, 'host', data.host)
  put(row, 'short', data.id.slice(0, 8))
  put(row, 'os', data.os)
  put(row, 'region', data.region)
  put(row, 'mac', data.mac)
  put(row, 'profile', data.profile || '–')
  row.querySelector('[data-column="created"]').replaceChildren(timeElement(new Date(data.created), 'auto'))
  put(row, 'serial', data.serial || t('unknown yet'))
  put(row, 'attempt', data.attempt > 1 ? t('attempt %s', data.attempt) : '')
  put(row, 'by', data.by || '–')
  put(row, 'summary', data.summary).hidden = Boolean(data.run)
  row.querySelector('[name="task"]').setAttribute('aria-label', t('Select %s', data.host))
  const age = row.querySelector('elapsed-time')
  age.title = data.utc
  age.setAttribute('since', data.updated)
  const run = row.querySelector('task-run')
  if (!run) return
  run.hidden = !data.run
  if (data.run) run.set(data.status, data.run)
}

customElements.define('task-table', TaskTable)
