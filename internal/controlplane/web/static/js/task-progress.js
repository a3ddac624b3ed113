import { TaskElement } from './element.js'
import { left, percent, size, speed, took } from './format.js'
import { Stale } from './stale.js'
import { STAGES, stageNumber } from './stages.js'
import { said, t } from './words.js'

/**
 * Figures and stages of one install, on its own page, with what the page says
 * elsewhere of the stage ([data-at]): all of it from the same message.
 */
class TaskProgress extends TaskElement {
  static types = ['progress']
  #stale = null
  #lasted = {} // so far, by stage
  #steps = {} // what agents say they do, in the page's language

  connectedCallback() {
    super.connectedCallback()
    if (!this.hasAttribute('data-live')) return
    this.#steps = JSON.parse(this.dataset.steps ?? '{}')
    this.#stale = new Stale(this.querySelector('[data-part="as-of"]'), () => {
      this.part('speed', t('unknown'))
      this.part('left', t('unknown'))
    })
  }

  disconnectedCallback() {
    super.disconnectedCallback()
    this.#stale?.stop()
  }

  draw({ attempt, stage, percentage, message, details }) {
    if (!this.hasAttribute('data-live') || (attempt && attempt < Number(this.getAttribute('attempt')))) return
    this.part('percent', percent(percentage))
    this.part('message', said(message ?? '', this.#steps))
    const known = details?.bytes_total > 0
    this.part('bytes-of', stage === 'installing' ? t('written') : t('downloaded'))
    this.part('done', known ? size(details.bytes_downloaded ?? 0) : '–')
    this.part('total', known ? t('of %s', size(details.bytes_total)) : '')
    this.part('speed', known ? speed(details.bytes_per_second) : '–')
    this.part('left', left(details))
    const now = stageNumber(stage)
    for (const el of document.querySelectorAll('[data-at]')) el.hidden = el.dataset.at !== (now ? stage : '')
    if (details?.elapsed_ms > 0) this.#lasted[stage] = took(details.elapsed_ms)
    for (const [i, s] of STAGES.entries()) {
      const li = this.querySelector(`[data-stage="${s.name}"]`)
      if (!li) continue
      const done = percentage >= 100 || now > i + 1
      li.querySelector('progress').value = done ? 100 : Math.min(Math.max(((percentage - s.from) * 100) / (s.to - s.from), 0), 100)
      const lasted = this.#lasted[s.name]
      if (lasted) li.querySelector('[data-part="note"]').textContent = done ? lasted : t('%s so far', lasted)
      if (done) li.dataset.step = 'done'
      else if (now === i + 1) li.dataset.step = 'now'
      else delete li.dataset.step
    }
    this.#stale?.fresh()
  }
}
customElements.define('task-progress', TaskProgress)
