import { TaskElement } from './element.js'
import { percent, timeElement } from './format.js'
import { Stale } from './stale.js'
import { stageWord } from './stages.js'
import { t } from './words.js'

/** The bar of a running install in a list. */
class TaskRun extends TaskElement {
  static types = ['progress']
  #stale = null

  connectedCallback() {
    super.connectedCallback()
    if (this.dataset.status === 'installing') this.#watch()
  }

  disconnectedCallback() {
    super.disconnectedCallback()
    this.#stale?.stop()
    this.#stale = null
  }

  draw({ stage, percentage }) {
    if (this.dataset.status !== 'installing') return
    this.part('stage', stageWord(stage))
    this.#amount(percentage)
    this.#stale?.fresh()
  }

  /** Shows what a list was told of the install. */
  set(status, { stage, percent: n, as_of: asOf }) {
    this.dataset.status = status
    this.querySelector('.stagebar').dataset.status = status
    this.part('stage', stage)
    this.#amount(n)
    if (status === 'installing') this.#watch()
    const mark = this.querySelector('[data-part="as-of"]')
    mark.hidden = !asOf
    if (!asOf) return
    const text = mark.querySelector('span')
    text.textContent = t('as of ')
    text.append(timeElement(new Date(asOf), 'auto'))
  }

  #watch() {
    this.#stale ??= new Stale(this.querySelector('[data-part="as-of"]'))
  }

  #amount(n) {
    this.part('percent', percent(n))
    const bar = this.querySelector('progress')
    bar.value = n
    bar.textContent = percent(n)
  }
}
customElements.define('task-run', TaskRun)
